"""Tensors that are computed or read when they are asked for, so that a whole model is never in memory."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Spec(NamedTuple):
    """What is known of a tensor before it exists."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name, in order of name, each made by ``make(name)`` when it is asked for.

    ``specs`` says which there are, and what they will be. With ``keep`` a tensor that was asked for is
    remembered; `stream` remembers nothing either way. ``make`` must give the same tensor every time.
    """

    def __init__(
        self, specs: Mapping[str, Spec], make: Callable[[str], Tensor], *, keep: bool = False
    ) -> None:
        self.specs = dict(sorted(specs.items()))
        self._make, self._keep = make, keep
        self._kept: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.specs:
            raise KeyError(name)
        if name in self._kept:
            return self._kept[name]
        tensor = self._make(name)
        if self._keep:
            self._kept[name] = tensor
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def stream(self, name: str) -> Tensor:
        """One tensor, which only the caller will hold."""
        return self._kept[name] if name in self._kept else self._make(name)
