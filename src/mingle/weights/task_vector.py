"""The difference between a checkpoint and its base, and the check that it has one."""

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from mingle.errors import MismatchError
from mingle.weights.checkpoint import DTYPES, Checkpoint


def check_against(base: Checkpoint, checkpoint: Checkpoint, optional: Collection[str] = ()) -> None:
    """Compares names, shapes, dtypes and finiteness with the base before anything is computed.

    ``optional`` tensors may be missing (the base's are used). Raises MismatchError with one line for
    EVERY mismatch: missing, unexpected, both shapes, dtype, non-finite values.
    """
    problems = [
        f"{name}: missing (base has {_shape(base, name)})"
        for name in base.names()
        if name not in checkpoint.entries and name not in optional
    ]
    for name in checkpoint.names():
        problems.extend(_tensor_problems(base, checkpoint, name))
    if problems:
        raise MismatchError(checkpoint.source, problems)


def _tensor_problems(base: Checkpoint, checkpoint: Checkpoint, name: str) -> Iterator[str]:
    entry = checkpoint.entries[name]
    if name not in base.entries:
        yield f"{name}: unexpected (the base has no such tensor; found {_shape(checkpoint, name)})"
        return
    if entry.shape != base.entries[name].shape:
        yield f"{name}: shape {_shape(checkpoint, name)}, base has {_shape(base, name)}"
    if entry.dtype not in DTYPES:
        yield f"{name}: dtype {entry.dtype}, expected one of {', '.join(DTYPES)}"
        return
    bad = int((~torch.isfinite(checkpoint.tensor(name))).sum())
    if bad:
        yield f"{name}: {bad} non-finite values (NaN or Inf)"


def task_vector(base: Checkpoint, checkpoint: Checkpoint, name: str, dtype: torch.dtype) -> Tensor:
    """``Δ = θt − θ0`` of one tensor, in ``dtype``; zero where the checkpoint does not hold it."""
    origin = base.tensor(name, dtype)
    if name not in checkpoint.entries:
        return torch.zeros_like(origin)
    return checkpoint.tensor(name, dtype) - origin


def _shape(checkpoint: Checkpoint, name: str) -> str:
    return "×".join(map(str, checkpoint.entries[name].shape)) or "scalar"
