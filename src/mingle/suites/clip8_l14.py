"""The 8 image tasks for CLIP ViT-L/14."""

from mingle.suites.base_clip import ClipSuite

PLUGIN = ClipSuite("clip8", "large-patch14", __name__)
