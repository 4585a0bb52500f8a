"""``glyph14`` and six more tasks of the same kind, built on demand: lower case, emoji, two icon topics."""

from mingle.suites.base_glyph import GlyphSuite

PLUGIN = GlyphSuite.built("glyph20", minutes=15)
