"""The 20 image tasks for CLIP ViT-B/16."""

from mingle.suites.base_clip import ClipSuite

PLUGIN = ClipSuite("clip20", "base-patch16", __name__)
