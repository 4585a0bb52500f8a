"""The 14 image tasks for CLIP ViT-B/32."""

from mingle.suites.base_clip import ClipSuite

PLUGIN = ClipSuite("clip14", "base-patch32", __name__)
