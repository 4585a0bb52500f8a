"""The difference between a checkpoint and its base, and the check that it has one."""

import math
from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from mingle.errors import CheckpointError, MismatchError
from mingle.weights.adapter import Adapter
from mingle.weights.checkpoint import DTYPES, Checkpoint

MIN_SIMILARITY = 0.5
"""Smallest cosine between a checkpoint's matrices and its base's."""

CHUNK = 2**20
"""Entries that are converted to float64 at once."""


def check_against(base: Checkpoint, checkpoint: Checkpoint, optional: Collection[str] = ()) -> None:
    """Compares names, shapes, dtypes and finiteness with the base before anything is computed.

    ``optional`` tensors may be missing (the base's are used). Raises MismatchError with one line for
    EVERY mismatch: missing, unexpected, both shapes, dtype, non-finite values – and, where there is none,
    a checkpoint of the base's shapes that does not resemble it, as one of another base.
    """
    problems = [
        f"{name}: missing (base has {_shape(base, name)})"
        for name in base.names()
        if name not in checkpoint.entries and name not in optional
    ]
    # An adapter resembles whatever base it is put on.
    compare = not problems and not isinstance(checkpoint, Adapter)
    problems += _problems(base, checkpoint, compare=compare)
    if problems:
        raise MismatchError(checkpoint.source, problems)


def check_finite(base: Checkpoint) -> None:
    """Refuses a base with NaN, Inf or a dtype that is not a float. Raises CheckpointError, one line."""
    if problems := _problems(base, base, compare=False):
        raise CheckpointError(f"{base.source}: not usable as a base: {'; '.join(problems)}")


def _problems(base: Checkpoint, checkpoint: Checkpoint, *, compare: bool) -> list[str]:
    """What is wrong with each tensor, or else, with ``compare``, with all of them; each is read once."""
    found = {name: list(_header_problems(base, checkpoint, name)) for name in checkpoint.names()}
    # What has no counterpart, or is of another kind, is not read.
    names = [n for n in found if n in base.entries and checkpoint.entries[n].dtype in DTYPES]
    compare = compare and not any(found.values())
    products = torch.zeros(3, dtype=torch.float64)

    def look(name: str, tensor: Tensor) -> None:
        if bad := _non_finite(tensor):
            found[name].append(f"{name}: {bad} non-finite values (NaN or Inf)")
        elif compare and tensor.dim() > 1:
            products.add_(_products(base.tensor(name), tensor))

    checkpoint.visit(names, look)
    dot, ours, theirs = products.tolist()
    problems = [problem for each in found.values() for problem in each]
    # Two trainings from different random starts are almost orthogonal; fine-tuning stays close to its base.
    similarity = dot / math.sqrt(ours * theirs) if ours * theirs else 1.0
    if not problems and similarity < MIN_SIMILARITY:
        problems = [
            f"all matrices together: cosine {similarity:.2f} to the base, expected at least "
            f"{MIN_SIMILARITY}; it was fine-tuned from another base"
        ]
    return problems


def _header_problems(base: Checkpoint, checkpoint: Checkpoint, name: str) -> Iterator[str]:
    entry = checkpoint.entries[name]
    if name not in base.entries:
        yield f"{name}: unexpected (the base has no such tensor; found {_shape(checkpoint, name)})"
        return
    if entry.shape != base.entries[name].shape:
        yield f"{name}: shape {_shape(checkpoint, name)}, base has {_shape(base, name)}"
    if entry.dtype not in DTYPES:
        yield f"{name}: dtype {entry.dtype}, expected one of {', '.join(DTYPES)}"


def _non_finite(tensor: Tensor) -> int:
    """How many values are NaN or Inf."""
    # Either shows in the extremes, which are found ten times faster than each value is looked at.
    if not tensor.numel() or all(map(math.isfinite, torch.aminmax(tensor))):
        return 0
    return int((~torch.isfinite(tensor)).sum())


def _products(one: Tensor, two: Tensor) -> Tensor:
    """``⟨a, b⟩``, ``⟨a, a⟩`` and ``⟨b, b⟩`` in float64, a part at a time: (3,)."""
    found = torch.zeros(3, dtype=torch.float64)
    parts = zip(*(torch.split(tensor.reshape(-1), CHUNK) for tensor in (one, two)), strict=True)
    for a, b in ((x.double(), y.double()) for x, y in parts):
        found += torch.stack([a @ b, a @ a, b @ b])
    return found


def task_vector(base: Checkpoint, checkpoint: Checkpoint, name: str, dtype: torch.dtype) -> Tensor:
    """``Δ = θt − θ0`` of one tensor, in ``dtype``; zero where the checkpoint does not hold it."""
    origin = base.tensor(name, dtype)
    if name not in checkpoint.entries:
        return torch.zeros_like(origin)
    return checkpoint.tensor(name, dtype) - origin


def _shape(checkpoint: Checkpoint, name: str) -> str:
    return "×".join(map(str, checkpoint.entries[name].shape)) or "scalar"
