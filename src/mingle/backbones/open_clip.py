"""CLIPs in the files of OpenCLIP (Ilharco et al. 2021), opened as the same models of transformers.

Both libraries compute the same function; they differ in names and layout. OpenCLIP stores q, k and v of a
block as one tensor, projections the other way round, and its settings in ``open_clip_config.json``. The
library itself is not needed. Heads, features and preprocessing are those of `clip`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mingle.backbones._limits import check_counts
from mingle.backbones.clip import Clip
from mingle.errors import CheckpointError, translated
from mingle.weights import Checkpoint, Entry, local_path, open_checkpoint, read_json

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
VISION_KEYS = {"image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio"}
TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}

BLOCK = {
    "ln_1": ("layer_norm1",),
    "ln_2": ("layer_norm2",),
    "attn.in_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.out_proj": ("self_attn.out_proj",),
    "mlp.c_fc": ("mlp.fc1",),
    "mlp.c_proj": ("mlp.fc2",),
}
"""Parts of a residual block; three names are the thirds of one stored tensor."""

VISION = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.proj": "visual_projection.weight",
}
TEXT = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
TURNED = ("visual_projection.weight", "text_projection.weight")


class OpenClip(Clip):
    """A CLIP with vision and text transformers of OpenCLIP, or its vision tower alone.

    A folder with ``open_clip_config.json`` and ``open_clip_model.safetensors``; a fine-tuned checkpoint may
    also be any safetensors file of the same names, with ``module.`` before them or not.
    """

    family = "OpenCLIP"
    companions = (CONFIG,)

    def open(self, source: str | Path, base: Checkpoint | None = None) -> Checkpoint:
        """Opens a folder, file or hub id. Raises CheckpointError, also for towers that are no plain ViT."""
        path = local_path(source)
        folder = path if path.is_dir() else path.parent
        found = open_checkpoint(folder / WEIGHTS if (path / WEIGHTS).is_file() else path, base=base)
        with translated(CheckpointError, f"{folder / CONFIG}: describes no CLIP"):
            config = _clip_config(folder / CONFIG) if (folder / CONFIG).is_file() else found.config
        if not config and base is None:
            raise CheckpointError(f"{source}: expected {CONFIG} beside the weights of a base, found none")
        described = replace(found, source=str(source), config=config)
        check_counts(described)
        found = described.renamed(lambda name: _name(name, VISION))
        return replace(found, entries=_turned(found.entries))

    def text_tower(self, base: Checkpoint) -> dict[str, Entry]:
        """Where the base stores its text tower, by the names of transformers, and ``logit_scale``."""
        return _turned(base.select(lambda name: _name(name, TEXT)))

    def processing(self, base: Checkpoint) -> dict[str, Any]:
        """Settings of the image processor: mean and deviation of ``preprocess_cfg``, or else CLIP's own."""
        return super().processing(base) | self.normalisation(base.folder)

    def normalisation(self, folder: Path) -> dict[str, Any]:
        """Mean and deviation of ``preprocess_cfg``, or else of ``preprocessor_config.json``."""
        settings = read_json(folder / CONFIG).get("preprocess_cfg") if (folder / CONFIG).is_file() else None
        names = {"mean": "image_mean", "std": "image_std"}
        if not isinstance(settings, dict | None):
            raise CheckpointError(f"{folder / CONFIG}: expected preprocess_cfg to be an object")
        own = {names[key]: value for key, value in (settings or {}).items() if key in names}
        return super().normalisation(folder) | own


def _name(stored_name: str, known: Mapping[str, str]) -> str | tuple[str, ...] | None:
    """The name in transformers of a tensor of one tower; three for q, k and v; None for other towers."""
    name = stored_name.removeprefix("module.")
    if name in known:
        return known[name]
    module, _, kind = name.rpartition(".")
    if module in known:
        return f"{known[module]}.{kind}"
    tower = "visual." if known is VISION else ""
    block = re.fullmatch(rf"{re.escape(tower)}transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)", name)
    if block is None or block[2] not in BLOCK:
        # What else a vision tower may hold is kept, to be refused as unexpected.
        return name if known is VISION and name.startswith("visual.") else None
    model = "vision_model" if known is VISION else "text_model"
    names = tuple(f"{model}.encoder.layers.{block[1]}.{part}.{block[3]}" for part in BLOCK[block[2]])
    return names if len(names) > 1 else names[0]


def _turned(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    return {name: entry.turned() if name in TURNED else entry for name, entry in entries.items()}


def _clip_config(file: Path) -> dict[str, Any]:
    """The configuration that transformers has for the same model. Raises CheckpointError."""
    settings = read_json(file).get("model_cfg")
    if not isinstance(settings, dict) or not {"vision_cfg", "embed_dim"} <= settings.keys():
        raise CheckpointError(f"{file}: expected model_cfg with embed_dim and vision_cfg")
    vision, text = settings["vision_cfg"], settings.get("text_cfg") or {}
    _check_plain(file, "vision_cfg", vision, VISION_KEYS)
    _check_plain(file, "text_cfg", text, TEXT_KEYS)
    activation = "quick_gelu" if settings.get("quick_gelu") else "gelu"
    shared = {"hidden_act": activation, "projection_dim": settings["embed_dim"]}
    width, head = vision.get("width", 768), vision.get("head_width", 64)
    return {
        "model_type": "clip",
        "projection_dim": settings["embed_dim"],
        "vision_config": {
            **shared,
            **_transformer(vision, width, width // head),
            "image_size": vision.get("image_size", 224),
            "patch_size": vision.get("patch_size", 16),
        },
        "text_config": {
            **shared,
            **_transformer(text, text.get("width", 512), text.get("heads", 8)),
            "vocab_size": text.get("vocab_size", 49408),
            "max_position_embeddings": text.get("context_length", 77),
            # To transformers this says: a text is read off where its largest token is.
            "eos_token_id": 2,
        },
    }


def _transformer(settings: Mapping[str, Any], width: int, heads: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_hidden_layers": settings.get("layers", 12),
        "intermediate_size": int(width * settings.get("mlp_ratio", 4.0)),
    }


def _check_plain(file: Path, part: str, settings: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuses settings of other architectures (ResNet, timm, CoCa, SigLIP) by name."""
    other = sorted(key for key, value in settings.items() if key not in known and value not in (None, False))
    if other or isinstance(settings.get("layers"), list):
        raise CheckpointError(
            f"{file}: expected the plain vision and text transformers of a CLIP, found {part} with "
            f"{', '.join(other) or 'layers of a ResNet'}; such towers cannot be merged"
        )


PLUGIN = OpenClip
