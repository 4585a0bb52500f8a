"""``glyph8`` and six more tasks of the same kind, built on demand: three scripts, emoji, two icon topics."""

from mingle.suites.base_glyph import GlyphSuite

PLUGIN = GlyphSuite.built("glyph14", minutes=8)
