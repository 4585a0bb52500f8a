"""The 14 image tasks for CLIP ViT-L/14."""

from mingle.suites.base_clip import ClipSuite

PLUGIN = ClipSuite("clip14", "large-patch14", __name__)
