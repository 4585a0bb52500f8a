"""The vision tower of any Hugging Face CLIP, classified against frozen class embeddings.

Logits: ``s · cos(f(x), e_c)`` with f the projected image embedding, e_c the embedding of class c and s the
logit scale (Radford et al. 2021). A checkpoint folder may bring its head as ``head.safetensors`` with
``class_embeddings`` (C, d) and ``logit_scale`` (), class names from ``id2label`` of its config.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from mingle.backbones.base_backbone import Backbone, Batch, Head, Samples, choose_sites
from mingle.errors import CheckpointError, SeedsError
from mingle.layers import LinearGroup
from mingle.weights import Checkpoint

TOWER = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
SITES = {
    "full": (*QKV, "self_attn.out_proj", "mlp.fc1", "mlp.fc2"),
    "light": (*QKV, "mlp.fc1"),
    "light+out": (*QKV, "self_attn.out_proj", "mlp.fc1"),
}
DEFAULT_LOGIT_SCALE = 100.0


class Clip(Backbone):
    """CLIPVisionModelWithProjection, from a CLIPModel, a vision tower, or a tower without projection."""

    optional = frozenset({"visual_projection.weight"})

    def canonical_name(self, stored_name: str) -> str | None:
        """Adds the ``vision_model.`` that transformers 5 drops from a bare tower; skips the text tower."""
        if stored_name.endswith("position_ids"):
            return None
        if stored_name.startswith(TOWER):
            return f"vision_model.{stored_name}"
        if stored_name.startswith(("text_model.", "text_projection.", "logit_scale")):
            return None
        return stored_name

    def check_family(self, checkpoint: Checkpoint) -> None:
        """``model_type`` must be ``clip`` or ``clip_vision_model``. Raises CheckpointError."""
        kind = checkpoint.config.get("model_type")
        if kind not in ("clip", "clip_vision_model"):
            raise CheckpointError(
                f"{checkpoint.source}: expected a CLIP (model_type 'clip' or 'clip_vision_model' in "
                f"config.json), found {kind!r}; merge only fine-tunings of the base"
            )

    def skeleton(self, checkpoint: Checkpoint) -> nn.Module:
        """The vision tower that ``config.json`` describes. Raises CheckpointError for another family."""
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        self.check_family(checkpoint)
        values = dict(checkpoint.config)
        if values["model_type"] == "clip":
            # The projection is the whole model's; a vision_config often repeats the library's default for it.
            own = {"projection_dim": values["projection_dim"]} if "projection_dim" in values else {}
            values = {**(values.get("vision_config") or {}), **own}
        try:
            with torch.device("meta"):
                tower: nn.Module = CLIPVisionModelWithProjection(CLIPVisionConfig.from_dict(values))
        except Exception as error:  # whatever transformers makes of a wrong value
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{checkpoint.source}: config.json describes no CLIP tower ({reason})"
            ) from error
        return tower

    def load(self, model: nn.Module, state: dict[str, Tensor], source: str = "weights") -> nn.Module:
        """Fills the tower; ``position_ids`` is a computed buffer and is made anew."""
        embeddings = model.get_submodule("vision_model.embeddings")
        positions = len(model.get_parameter("vision_model.embeddings.position_embedding.weight"))
        embeddings.register_buffer("position_ids", torch.arange(positions)[None], persistent=False)
        return super().load(model, state, source)

    def groups(self, model: nn.Module, sites: str) -> list[LinearGroup]:
        """q, k and v of a block read the same tensor; out_proj, fc1 and fc2 each their own."""
        chosen = choose_sites(sites, SITES)
        kinds = (QKV, *((kind,) for kind in chosen if kind not in QKV))
        layers = sum(1 for _ in model.get_submodule("vision_model.encoder.layers").children())
        blocks = (f"vision_model.encoder.layers.{i}" for i in range(layers))
        return [
            LinearGroup(tuple(f"{block}.{name}" for name in names), _norm(block, names[0]))
            for block in blocks
            for names in kinds
        ]

    def width(self, model: nn.Module) -> int:
        """Hidden width of the tower."""
        return model.get_parameter("vision_model.embeddings.class_embedding").numel()

    def head(self, checkpoint: Checkpoint, given: Path | Tensor | None = None) -> Head | None:
        """Class embeddings (C, d): a tensor, a file, or ``head.safetensors`` beside the checkpoint.

        Text embeddings of the class names, say; they are normalised when they are used. Raises
        CheckpointError.
        """
        path = checkpoint.folder / "head.safetensors"
        if given is None and not path.exists():
            return None
        if isinstance(given, Tensor):
            tensors, where = {"class_embeddings": given}, "head"
        else:
            where = str(given or path)
            tensors = _read_head(Path(where))
        if "class_embeddings" not in tensors or tensors["class_embeddings"].dim() != 2:
            raise CheckpointError(f"{where}: expected a tensor 'class_embeddings' (classes × dimension)")
        labels = checkpoint.config.get("id2label") or {}
        number = len(tensors["class_embeddings"])
        if labels and len(labels) != number:
            raise CheckpointError(
                f"{where}: {number} class embeddings, but id2label of config.json names {len(labels)} classes"
            )
        names = tuple(str(labels.get(str(i), i)) for i in range(number))
        return Head(names, tensors)

    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """Projected image embeddings (N, d), not normalised."""
        embeddings: Tensor = model(**batch).image_embeds
        return embeddings

    def classify(self, features: Tensor, head: Head) -> Tensor:
        """``s · cos(features, class embeddings)``: (N, C)."""
        classes = head.tensors["class_embeddings"].to(features)
        scale = head.tensors.get("logit_scale")
        factor = DEFAULT_LOGIT_SCALE if scale is None else float(scale)
        return factor * normalize(features, dim=-1) @ normalize(classes, dim=-1).mT

    def prepare(self, samples: Samples, base: Checkpoint) -> Batch:
        """Images to ``pixel_values`` (N, 3, H, W).

        A uint8 tensor (N, 3, H, W) of the model's size is only rescaled and normalised; a float tensor of
        that size is taken as already normalised; a list of PIL images goes through the image processor.
        """
        from transformers import CLIPImageProcessorPil

        values = {k: v for k, v in _processor_config(base).items() if k != "image_processor_type"}
        processor = CLIPImageProcessorPil(**values)
        if isinstance(samples, Sequence):
            images = processor(images=list(samples), return_tensors="pt")
            return {"pixel_values": images["pixel_values"]}
        size = int((base.config.get("vision_config") or base.config)["image_size"])
        if samples.dim() != 4 or tuple(samples.shape[1:]) != (3, size, size):
            raise SeedsError(
                f"images: expected a tensor (N, 3, {size}, {size}), found {tuple(samples.shape)}; "
                "resize them, or pass image files, which are resized for you"
            )
        if samples.dtype != torch.uint8:
            return {"pixel_values": samples}
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (processor.image_mean, processor.image_std))
        return {"pixel_values": (samples.float() / 255 - mean) / std}


def _read_head(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from error
    return tensors


def _norm(block: str, first: str) -> str | None:
    norms = {"self_attn.q_proj": "layer_norm1", "mlp.fc1": "layer_norm2"}
    return f"{block}.{norms[first]}" if first in norms else None


def _processor_config(base: Checkpoint) -> dict[str, Any]:
    import json

    path = base.folder / "preprocessor_config.json"
    if not path.exists():
        size = int((base.config.get("vision_config") or base.config)["image_size"])
        return {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


PLUGIN = Clip
