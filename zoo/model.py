"""The tiny vision tower, newly made, and how it is shipped."""

from __future__ import annotations

from pathlib import Path

from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from mingle.suites._glyph.recipe import IMAGE_SIZE


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
    half.half().save_pretrained(folder, safe_serialization=True)
