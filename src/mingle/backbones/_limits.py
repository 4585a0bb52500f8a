"""Configurations that ask for more than any model has: refused before anything is made of them."""

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

from mingle.errors import CheckpointError
from mingle.weights import Checkpoint

LIMITS = {"layer": 1_000, "depth": 1_000, "label": 1_000_000}
"""Numbers under keys that contain these words are how many modules, or names, are made in a loop."""

BUFFERS = 2**28
"""Bytes of computed buffers that any model may have; more only up to the size of its weights."""

SIDE = 4_096
"""Pixels that a side of a prepared picture may have."""


def check_counts(checkpoint: Checkpoint) -> None:
    """Refuses numbers of layers and labels that no model has. Raises CheckpointError."""
    for key, number in _numbers(checkpoint.config):
        for word, limit in LIMITS.items():
            if word in key and number > limit:
                raise CheckpointError(
                    f"{checkpoint.source}: config.json: {key}: expected at most {limit}, found {number}"
                )


def check_buffers(checkpoint: Checkpoint, size: int) -> None:
    """Refuses a model whose computed buffers, of ``size`` bytes, are larger than its weights.

    Raises CheckpointError.
    """
    stored = sum(file.stat().st_size for file in {entry.file for entry in checkpoint.stored})
    if size > max(BUFFERS, stored):
        raise CheckpointError(
            f"{checkpoint.source}: config.json: expected computed buffers no larger than the weights, "
            f"found {size >> 20} MB"
        )


def check_processor(where: str, processor: Any) -> None:  # noqa: ANN401 – a class of transformers
    """Refuses sizes and normalisations that no picture has. Raises CheckpointError."""
    sizes = {key: dict(getattr(processor, key, None) or {}) for key in ("size", "crop_size")}
    for key, number in _numbers(sizes):
        if not 0 < number <= SIDE:
            raise CheckpointError(f"{where}: {key}: expected 1 to {SIDE} pixels, found {number}")
    for key in ("image_mean", "image_std"):
        found = getattr(processor, key, None)
        values = list(found) if isinstance(found, list | tuple) else []
        fit = len(values) == 3 and all(isinstance(v, int | float) and isfinite(v) for v in values)
        if not fit or (key == "image_std" and 0 in values):
            raise CheckpointError(f"{where}: {key}: expected three usable numbers, found {found!r:.200}")


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Every number in nested values, with the innermost key above it; not those of class names."""
    waiting: list[tuple[str, Any]] = list(values.items())
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, Mapping) and key not in ("label2id", "id2label"):
            waiting.extend((str(inner), item) for inner, item in value.items())
        elif isinstance(value, list | tuple):
            waiting.extend((key, item) for item in value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield key, value
