"""The vision tower of any Hugging Face CLIP, classified against frozen class embeddings.

Logits: ``s · cos(f(x), e_c)`` with f the projected image embedding, e_c the embedding of class c and s the
logit scale (Radford et al. 2021). A checkpoint folder may bring its head as ``head.safetensors`` with
``class_embeddings`` (C, d) and ``logit_scale`` (), the factor itself (CLIP stores its logarithm). Class names
are the JSON list ``classes`` in the file's metadata, or else ``id2label`` of the checkpoint's config.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mingle.backbones._clip_heads import zero_shot_head
from mingle.backbones._head_files import read_head
from mingle.backbones._images import PROCESSOR, ImageReader, pixels
from mingle.backbones._limits import check_processor
from mingle.backbones._names import class_names
from mingle.backbones.base_backbone import Batch, Head, Samples, choose_sites
from mingle.errors import CheckpointError, translated
from mingle.layers import LinearGroup
from mingle.weights import Checkpoint, Entry, read_json

TOWER = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")
TEXT = ("text_model.", "text_projection.", "logit_scale")
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
SITES = {
    "full": (*QKV, "self_attn.out_proj", "mlp.fc1", "mlp.fc2"),
    "light": (*QKV, "mlp.fc1"),
    "light+out": (*QKV, "self_attn.out_proj", "mlp.fc1"),
    "mlp": ("mlp.fc1", "mlp.fc2"),
}
DEFAULT_LOGIT_SCALE = 100.0


class Clip(ImageReader):
    """CLIPVisionModelWithProjection, also out of a whole CLIPModel.

    A fine-tuned checkpoint may be a bare CLIPVisionModel: the base's projection is used.
    """

    family = "CLIP"
    model_types = ("clip", "clip_vision_model")
    decisive = ("num_attention_heads", "hidden_act", "layer_norm_eps", "patch_size", "image_size")
    optional = frozenset({"visual_projection.weight"})

    def canonical_name(self, stored_name: str) -> str | None:
        """Adds the ``vision_model.`` that transformers 5 drops from a bare tower; skips the text tower."""
        if stored_name.endswith("position_ids"):
            return None
        if stored_name.startswith(TOWER):
            return f"vision_model.{stored_name}"
        if stored_name.startswith(TEXT):
            return None
        return stored_name

    def config(self, checkpoint: Checkpoint) -> Any:  # noqa: ANN401 – a configuration class of transformers
        """That of the vision tower, also out of a whole CLIP's. Raises CheckpointError."""
        return _vision_config(checkpoint)

    def skeleton(self, checkpoint: Checkpoint) -> nn.Module:
        """The vision tower that ``config.json`` describes. Raises CheckpointError for another family."""
        from transformers import CLIPVisionModelWithProjection

        self.check_family(checkpoint)
        config = _vision_config(checkpoint)
        with _described(checkpoint), torch.device("meta"):
            tower: nn.Module = CLIPVisionModelWithProjection(config)
        return tower

    def load(self, model: nn.Module, state: dict[str, Tensor], source: str = "weights") -> nn.Module:
        """Fills the tower; ``position_ids`` is a computed buffer and is made anew."""
        filled = super().load(model, state, source)
        embeddings = filled.get_submodule("vision_model.embeddings")
        positions = len(filled.get_parameter("vision_model.embeddings.position_embedding.weight"))
        embeddings.register_buffer("position_ids", torch.arange(positions)[None], persistent=False)
        return filled

    def groups(self, model: nn.Module, sites: str) -> list[LinearGroup]:
        """q, k and v of a block read the same tensor; out_proj, fc1 and fc2 each their own."""
        chosen = choose_sites(sites, SITES)
        kinds = (*((QKV,) if QKV[0] in chosen else ()), *((kind,) for kind in chosen if kind not in QKV))
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

    def head(
        self, checkpoint: Checkpoint, given: Path | Tensor | None = None, *, base: Checkpoint | None = None
    ) -> Head | None:
        """Class embeddings (C, d): a tensor, a file, or ``head.safetensors`` beside the checkpoint.

        Text embeddings of the class names, say; they are normalised when they are used. Raises
        CheckpointError.
        """
        path = checkpoint.folder / "head.safetensors"
        if given is None and not path.exists():
            return None
        if isinstance(given, Tensor):
            return _head("head", {"class_embeddings": given}, None, checkpoint, base)
        file = given or path
        return _head(str(file), *read_head(file), checkpoint, base)

    def zero_shot_head(
        self, base: Checkpoint, classes: Sequence[str], templates: Sequence[str] | None = None
    ) -> Head:
        """Class embeddings of the base's own text tower, see `_clip_heads`."""
        return zero_shot_head(base, self.text_tower(base), classes, templates)

    def text_tower(self, base: Checkpoint) -> dict[str, Entry]:
        """Where the base stores its text tower, by the names of transformers, and ``logit_scale``."""
        return base.select(
            lambda name: name if name.startswith(TEXT) and "position_ids" not in name else None
        )

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
        """Images to ``pixel_values`` (N, 3, H, W), see `_images.pixels`. Raises SeedsError."""
        size = int(_vision_config(base).image_size)
        return pixels(samples, self.processor(base), (size, size))

    def processor(self, base: Checkpoint) -> Any:  # noqa: ANN401 – a class of transformers
        """CLIP's own, with the settings of the base. Raises CheckpointError."""
        from transformers import CLIPImageProcessorPil

        values = {k: v for k, v in self.processing(base).items() if k != "image_processor_type"}
        with translated(CheckpointError, f"{base.source}: describes no image processor"):
            found = CLIPImageProcessorPil(**values)
        check_processor(base.source, found)
        return found

    def processing(self, base: Checkpoint) -> dict[str, Any]:
        """Settings of the image processor: ``preprocessor_config.json``, or else CLIP's own at its size."""
        path = base.folder / PROCESSOR
        if path.exists():
            return read_json(path)
        size = int(_vision_config(base).image_size)
        return {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}


def _head(
    where: str,
    tensors: dict[str, Tensor],
    named: list[str] | None,
    checkpoint: Checkpoint,
    base: Checkpoint | None,
) -> Head:
    """Checks a head; class names from its own metadata, or else from the checkpoint."""
    embeddings = tensors.get("class_embeddings")
    if embeddings is None or embeddings.dim() != 2:
        raise CheckpointError(f"{where}: expected a tensor 'class_embeddings' (classes × dimension)")
    wide = int(_vision_config(base).projection_dim) if base else embeddings.shape[1]
    if embeddings.shape[1] != wide or not torch.isfinite(embeddings).all():
        raise CheckpointError(
            f"{where}: expected finite class embeddings of dimension {wide}, the model's, "
            f"found {'×'.join(map(str, embeddings.shape))}"
        )
    return Head(class_names(where, len(embeddings), "class embeddings", checkpoint.config, named), tensors)


def _vision_config(checkpoint: Checkpoint) -> Any:  # noqa: ANN401 – a configuration class of transformers
    from transformers import CLIPVisionConfig

    values = dict(checkpoint.config)
    if values.get("model_type") == "clip":
        # The projection is the whole model's; a vision_config often repeats the library's default for it.
        own = {"projection_dim": values["projection_dim"]} if "projection_dim" in values else {}
        values = {**(values.get("vision_config") or {}), **own}
    with _described(checkpoint):
        return CLIPVisionConfig.from_dict(values)


def _described(checkpoint: Checkpoint) -> AbstractContextManager[None]:
    return translated(CheckpointError, f"{checkpoint.source}: config.json describes no CLIP tower")


def _norm(block: str, first: str) -> str | None:
    norms = {"self_attn.q_proj": "layer_norm1", "mlp.fc1": "layer_norm2"}
    return f"{block}.{norms[first]}" if first in norms else None


PLUGIN = Clip
