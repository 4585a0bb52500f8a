"""The suites dino8 and dino8_lora from their sources: the glyph tasks at 70 pixels for a DINOv2 ViT-S/14.

Only ``mingle suite build dino8`` comes here; a suite that is built needs none of it.
"""
