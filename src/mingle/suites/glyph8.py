"""The shipped suite: eight 32×32 image tasks, a tiny CLIP vision tower and eight fine-tunings of it."""

from pathlib import Path

from mingle.suites.base_folder import FolderSuite

PLUGIN = FolderSuite(Path(__file__).parent / "glyph8")
