"""The tiny vision tower: loaded, run, and scored."""

from pathlib import Path

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
