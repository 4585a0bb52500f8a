"""The 14 image tasks for CLIP ViT-B/16."""

from mingle.suites.base_clip import ClipSuite

PLUGIN = ClipSuite("clip14", "base-patch16", __name__)
