"""The 8 image tasks for CLIP ViT-B/32."""

from mingle.suites.base_clip import ClipSuite

PLUGIN = ClipSuite("clip8", "base-patch32", __name__)
