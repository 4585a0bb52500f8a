"""Which experts a sample uses: only those whose gate matters.

Shapes: N samples; T tasks; gates (N, T).
"""

import weakref
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class UsedExpert(NamedTuple):
    """An expert, the samples that use it – indices (n,), None for all of them – and their gates (n, 1, 1)."""

    task: int
    samples: Tensor | None
    gates: Tensor


class Selected(NamedTuple):
    """Gates (N, T), 0 for every expert that a sample does not use, and the experts that some sample uses."""

    gates: Tensor
    experts: tuple[UsedExpert, ...]


@dataclass(eq=False)
class Selection:
    """Of the experts with ``|g_i| ≥ threshold`` the ``strongest`` (None: all) with the largest ``|g_i|``.

    The gates that stay are not scaled up; a sample may be left without any expert. One selection serves all
    layers of a model: layers with the same gates tensor share one grouping of the samples by expert.
    """

    strongest: int | None = None
    threshold: float = 0.0
    _last: tuple[weakref.ref[Tensor], int | None, Selected] | None = field(
        default=None, init=False, repr=False
    )

    def keeps_all(self, tasks: int) -> bool:
        """Whether that many experts are all used, whatever their gates."""
        return self.threshold == 0 and (self.strongest is None or self.strongest >= tasks)

    def kept(self, gates: Tensor) -> Tensor:
        """(N, T) -> (N, T): 0 for what is left out."""
        size = gates.abs()
        # In this direction, for a gate that is not a number must not vanish.
        left_out = size < self.threshold
        if self.strongest is not None and self.strongest < gates.shape[1]:
            chosen = size.topk(self.strongest, dim=1).indices
            left_out = left_out | torch.ones_like(left_out).scatter(1, chosen, False)
        return gates.masked_fill(left_out, 0)

    def __call__(self, gates: Tensor) -> Selected:
        """The gates (N, T) that are kept, and who uses which expert."""
        # An inference tensor has no version counter; gates are not changed in place.
        version = None if gates.is_inference() else gates._version
        last = self._last
        if last is not None and last[0]() is gates and last[1] == version:
            return last[2]
        kept = self.kept(gates)
        found = Selected(kept, tuple(_used(kept)))
        # What is kept here must not hold a graph.
        self._last = None if kept.requires_grad else (weakref.ref(gates, self._forget), version, found)
        return found

    def _forget(self, _: object) -> None:
        self._last = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_last": None}


def _used(gates: Tensor) -> list[UsedExpert]:
    uses = gates != 0
    found = []
    for task in uses.any(0).nonzero().flatten().tolist():
        samples = uses[:, task].nonzero().flatten()
        own = gates[samples, task, None, None]
        found.append(UsedExpert(task, None if len(samples) == len(gates) else samples, own))
    return found
