"""Image classifiers of the ViT kind: ViT, DeiT, DINOv2 (with registers or without), BEiT, Swin (v1 and v2).

The merged model is the class of AutoModelForImageClassification without its last Linear, which is the head of
the task that a checkpoint was fine-tuned for.
"""

from typing import Any, ClassVar

from torch import Tensor, nn

from mingle.backbones._images import PROCESSOR, ImageReader, pixels
from mingle.backbones._limits import check_processor
from mingle.backbones._passes import during_passes, tell_samples
from mingle.backbones.base_backbone import Batch, Samples
from mingle.backbones.base_classifier import ClassifierBackbone
from mingle.errors import CheckpointError, translated
from mingle.weights import Checkpoint, read_json

BEFORE_AFTER = {"attention_in": "layernorm_before", "mlp_in": "layernorm_after"}
FIRST_SECOND = {"attention_in": "norm1", "mlp_in": "norm2"}


class ImageClassifier(ImageReader, ClassifierBackbone):
    """Features are what the classifier reads: for DINOv2 class token and mean patch side by side, else d."""

    family = "image classifier"
    model_types = ("vit", "deit", "dinov2", "dinov2_with_registers", "beit", "swin", "swinv2")
    auto_class = "AutoModelForImageClassification"
    heads = ("classifier",)
    # Swin cuts its normalised input into windows, and Swin v2 normalises outputs.
    norms: ClassVar = {
        **dict.fromkeys(("vit", "deit", "beit"), BEFORE_AFTER),
        **dict.fromkeys(("dinov2", "dinov2_with_registers"), FIRST_SECOND),
        "swin": {"mlp_in": "layernorm_after"},
    }
    decisive = (
        "model_type",
        "num_attention_heads",
        "num_heads",
        "hidden_act",
        "layer_norm_eps",
        "image_size",
        "patch_size",
        "window_size",
        "use_mean_pooling",
        "use_absolute_position_embeddings",
    )
    optional = frozenset(f"{model_type}.embeddings.mask_token" for model_type in model_types)

    def load(self, model: nn.Module, state: dict[str, Tensor], source: str = "weights") -> nn.Module:
        """Fills the model, and lets gates know the sample that a window belongs to."""
        filled = super().load(model, state, source)
        dtype = next(filled.parameters()).dtype
        for buffer in filled.buffers():
            # Swin v2 has a table of coordinates that a Linear reads.
            if buffer.is_floating_point():
                buffer.data = buffer.to(dtype)
        during_passes(filled, tell_samples)
        return filled

    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the classifier reads: (N, d)."""
        found: Tensor = model(**batch).logits
        return found

    def prepare(self, samples: Samples, base: Checkpoint) -> Batch:
        """Images to ``pixel_values``, see `_images.pixels`. Raises SeedsError, CheckpointError.

        Without ``preprocessor_config.json`` beside the base: bilinear to the model's size, mean and standard
        deviation 0.5.
        """
        processor = self.processor(base)
        return pixels(samples, processor, _size(processor) or self._model_size(base))

    def processor(self, base: Checkpoint) -> Any:  # noqa: ANN401 – a class of transformers
        """The base's own, or else the one that `prepare` says. Raises CheckpointError."""
        from transformers import AutoImageProcessor, ViTImageProcessorPil

        path = base.folder / PROCESSOR
        if not path.exists():
            height, width = self._model_size(base)
            half = [0.5, 0.5, 0.5]
            return ViTImageProcessorPil(
                size={"height": height, "width": width}, image_mean=half, image_std=half
            )
        read_json(path)
        with translated(CheckpointError, f"{path}: describes no image processor"):
            found = AutoImageProcessor.from_pretrained(
                str(base.folder), backend="pil", local_files_only=True, trust_remote_code=False
            )
        check_processor(str(path), found)
        return found

    def _model_size(self, base: Checkpoint) -> tuple[int, int]:
        size = self.config(base).image_size
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _size(processor: Any) -> tuple[int, int] | None:  # noqa: ANN401 – a class of transformers
    """Height and width of what a processor makes, where they are the same for every picture."""
    cropped = getattr(processor, "do_center_crop", None)
    size = dict(processor.crop_size if cropped else processor.size)
    return (int(size["height"]), int(size["width"])) if {"height", "width"} <= size.keys() else None


PLUGIN = ImageClassifier
