"""The shipped suite: eight 32×32 image tasks, a tiny CLIP vision tower and eight fine-tunings of it."""

from pathlib import Path

from mingle.suites.base_glyph import GlyphSuite

PLUGIN = GlyphSuite(Path(__file__).parent / "glyph8")
