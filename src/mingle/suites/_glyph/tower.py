"""The tiny vision tower: loaded, run, and scored."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mingle.suites._glyph.augment import normalise

LOGIT_SCALE = 20.0


def load_tower(folder: Path) -> nn.Module:
    """A stored CLIPVisionModelWithProjection as fp32."""
    from transformers import CLIPVisionModelWithProjection
    from transformers.utils import logging

    logging.disable_progress_bar()
    tower: nn.Module = CLIPVisionModelWithProjection.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32
    )
    return tower


@torch.inference_mode()
def embed(model: nn.Module, pictures: Tensor) -> Tensor:
    """Image embeddings of norm 1 (N, d) of pictures (N, 3, 32, 32) in 0..1."""
    model.eval()
    parts = [pictures[start : start + 256] for start in range(0, len(pictures), 256)]
    rows = [model(pixel_values=normalise(part)).image_embeds for part in parts]
    return normalize(torch.cat(rows), dim=1)


def accuracy(model: nn.Module, head: Tensor, images: Tensor, labels: Tensor) -> float:
    """Share of uint8 images whose nearest class embedding is their own."""
    guess = (embed(model, images.float() / 255) @ head.T).argmax(dim=1)
    return (guess == labels).float().mean().item()


def cosine(step: int, steps: int, peak: float, warm_up: int) -> float:
    """The learning rate at a step: linear warm-up, then a cosine down to one hundredth of the peak."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    share = (step - warm_up) / max(1, steps - warm_up)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))


def groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Trainable parameters for an optimiser; weight decay for matrices alone."""
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    return [
        {"params": [w for w in trainable if w.ndim > 1], "weight_decay": decay},
        {"params": [w for w in trainable if w.ndim <= 1], "weight_decay": 0.0},
    ]
