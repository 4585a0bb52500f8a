"""``dino8`` with LoRA adapters of its base instead of whole fine-tuned models."""

from mingle.suites.dino8 import Dino8

PLUGIN = Dino8.built("dino8_lora", minutes=35, megabytes=441)
