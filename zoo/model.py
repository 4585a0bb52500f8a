"""The tiny vision tower, and how it is saved, loaded and run."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from augment import normalise
from common import IMAGE_SIZE

LOGIT_SCALE = 20.0


def new_model() -> CLIPVisionModelWithProjection:
    """A freshly initialised tower of 1.2 million parameters."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=4,
            image_size=IMAGE_SIZE,
            patch_size=8,
            projection_dim=128,
            hidden_act="gelu",
        )
    )


def save_half(model: CLIPVisionModelWithProjection, folder: Path) -> None:
    """Write the model with its weights rounded to fp16: what ships."""
    folder.mkdir(parents=True, exist_ok=True)
    half = new_model()
    half.load_state_dict(model.state_dict())
    half.config.id2label, half.config.label2id = model.config.id2label, model.config.label2id
    half.half().save_pretrained(folder, safe_serialization=True)


def load_model(folder: Path) -> CLIPVisionModelWithProjection:
    """Read a shipped model back as fp32."""
    return CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True, dtype=torch.float32)


@torch.inference_mode()
def embed(model: CLIPVisionModelWithProjection, pictures: Tensor) -> Tensor:
    """Image embeddings of norm 1 of pictures in 0..1."""
    model.eval()
    rows = [model(pixel_values=normalise(chunk)).image_embeds for chunk in pictures.split(256)]
    return functional.normalize(torch.cat(rows), dim=1)


def accuracy(model: CLIPVisionModelWithProjection, head: Tensor, images: Tensor, labels: Tensor) -> float:
    """Share of uint8 images whose nearest class embedding is their own."""
    guess = (embed(model, images.float() / 255) @ head.T).argmax(dim=1)
    return (guess == labels).float().mean().item()


def cosine(step: int, steps: int, peak: float, warm_up: int) -> float:
    """The learning rate at a step: linear warm-up, then a cosine down to one hundredth."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    share = (step - warm_up) / max(1, steps - warm_up)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))


def save_state(file: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Keep what `load_state` continues from; a kill in the middle leaves the state before."""
    partial = file.with_suffix(".partial")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, partial)
    partial.rename(file)


def load_state(file: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Continue from a saved state where there is one; the number of steps already done."""
    if not file.exists():
        return 0
    state = torch.load(file, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def groups(model: nn.Module, decay: float) -> list[dict[str, object]]:
    """Trainable parameters; weight decay for matrices alone."""
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    return [
        {"params": [w for w in trainable if w.ndim > 1], "weight_decay": decay},
        {"params": [w for w in trainable if w.ndim <= 1], "weight_decay": 0.0},
    ]
