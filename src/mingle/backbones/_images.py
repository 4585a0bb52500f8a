"""Pictures as tensors, through the image processor beside a model; Pillow does the work, not torchvision."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mingle.backbones.base_backbone import Backbone, Batch, Samples
from mingle.errors import CheckpointError, SeedsError, translated
from mingle.weights import Checkpoint, read_json

PROCESSOR = "preprocessor_config.json"

ELONGATED = 200
"""How many times longer one side of a picture may be; resized to a shortest side, it would grow by that."""


class ImageReader(Backbone):
    """A family that reads pictures, through the image processor beside the base."""

    @abstractmethod
    def processor(self, base: Checkpoint) -> Any:  # noqa: ANN401 – a class of transformers
        """The image processor of a base. Raises CheckpointError."""

    def normalisation(self, folder: Path) -> dict[str, Any]:
        """``image_mean`` and ``image_std`` as far as a folder says them. Raises CheckpointError."""
        path = folder / PROCESSOR
        values = read_json(path) if path.exists() else {}
        return {key: values[key] for key in ("image_mean", "image_std") if values.get(key) is not None}

    def check_family(self, checkpoint: Checkpoint, base: Checkpoint | None = None) -> None:
        """Also refuses a checkpoint that normalises pictures in another way. Raises CheckpointError."""
        super().check_family(checkpoint, base)
        own = {} if base is None else self.normalisation(checkpoint.folder)
        if base is None or not own:
            return
        processor = self.processor(base)
        for key, value in own.items():
            wanted = getattr(processor, key)
            if _rounded(value) != _rounded(wanted):
                raise CheckpointError(
                    f"{checkpoint.source}: normalises pictures otherwise than the base: {key} {value} (base "
                    f"{wanted}); merge only checkpoints whose pictures were prepared as the base's are"
                )


def _rounded(values: object) -> object:
    """Files keep different numbers of digits."""
    if not isinstance(values, list | tuple):
        return values
    return [round(value, 4) if isinstance(value, float | int) else value for value in values]


def pixels(samples: Samples, processor: Any, size: tuple[int, int]) -> Batch:  # noqa: ANN401 – of transformers
    """``pixel_values`` (N, 3, H, W) for a model of that height and width. Raises SeedsError.

    Integers 0…255 (N, 3, H, W) of the model's size are only rescaled and normalised; floats are taken
    as already normalised and refused where they cannot be; PIL images go through the processor.
    """
    if isinstance(samples, Sequence):
        # One picture at a time is in memory as it came.
        with translated(CheckpointError, f"{PROCESSOR}: the image processor cannot prepare these pictures"):
            return {"pixel_values": torch.cat([_processed(image, processor) for image in samples])}
    shape = (3, *size)
    if samples.dim() != 4 or tuple(samples.shape[1:]) != shape:
        raise SeedsError(
            f"images: expected a tensor (N, {', '.join(map(str, shape))}), found {tuple(samples.shape)}; "
            "resize them, or pass image files, which are resized for you"
        )
    if samples.is_floating_point():
        return {"pixel_values": _normalised(samples)}
    if samples.numel() and not 0 <= int(samples.min()) <= int(samples.max()) <= 255:
        raise SeedsError(f"images: expected integers 0…255, found {int(samples.min())}…{int(samples.max())}")
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (processor.image_mean, processor.image_std))
    return {"pixel_values": (samples.float() / 255 - mean) / std}


def _processed(image: Any, processor: Any) -> Tensor:  # noqa: ANN401 – a picture, a class of transformers
    """One picture (1, 3, H, W)."""
    if isinstance(image, str):
        raise SeedsError("images: expected pictures, found texts; is it the right backbone?")
    if max(image.size) > ELONGATED * min(image.size):
        raise SeedsError(f"images: expected sides of similar length, found {image.size[0]}×{image.size[1]}")
    prepared: Tensor = processor(images=[image], return_tensors="pt")["pixel_values"]
    return prepared


def _normalised(images: Tensor) -> Tensor:
    if not torch.isfinite(images).all():
        raise SeedsError("images: expected finite values, found NaN or Inf")
    if images.numel() and float(images.min()) >= 0:
        raise SeedsError(
            "images: floats without a negative value look like pictures that were not normalised; "
            "pass integers 0…255, or normalise them as the model's preprocessor does"
        )
    return images
