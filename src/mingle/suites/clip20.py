"""The 20 image tasks for CLIP ViT-B/32."""

from mingle.suites.base_clip import ClipSuite

PLUGIN = ClipSuite("clip20", "base-patch32", __name__)
