"""The eleven image tasks of MTIL for CLIP ViT-B/16."""

from mingle.suites.base_clip import ClipSuite

PLUGIN = ClipSuite("mtil11", "base-patch16", __name__)
