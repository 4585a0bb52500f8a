"""Methods that treat the weights of Linears as matrices and merge everything else more simply.

Shapes: M (d_out, d_in) the merged vector θ − θ0 of a Linear's weight, D (d_out, d_in) its task vector.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from mingle.config import Options
from mingle.layers import LinearGroup
from mingle.methods.base_method import Base, Progress
from mingle.methods.base_streaming import Plan, Sources, StreamingMethod, Versions


class LinearOptions(Options):
    """``sites``: which Linears are merged as matrices, in the backbone's words."""

    sites: str = "full"


LinearOptionsT = TypeVar("LinearOptionsT", bound=LinearOptions)


class SitesMethod(StreamingMethod[LinearOptionsT], Generic[LinearOptionsT]):
    """A method that has to know which tensors are weights of Linears."""

    options_type: ClassVar[type[Options]] = LinearOptions

    def settings(self, base: Base) -> dict[str, Any]:
        """Every option with the value that is used. Raises UnknownNameError for the sites."""
        self.linear_weights(base)
        return super().settings(base)

    def linear_weights(self, base: Base) -> dict[str, LinearGroup]:
        """The weights merged as matrices, with their groups. Raises UnknownNameError for the sites."""
        groups = base.backbone.groups(base.outline, self.options.sites)
        return {f"{name}.weight": group for group in groups for name in group.linears}


class LinearwiseMethod(SitesMethod[LinearOptionsT], Generic[LinearOptionsT]):
    """``θ ← θ0 + merge_linear(M, D)`` for the chosen Linears, in float64; `merge_other` for the rest."""

    @abstractmethod
    def merge_linear(self, merged: Tensor, new: Tensor, t: int, generator: torch.Generator) -> Tensor:
        """The merged vector after task t, from M (zero at t = 1) and D; draws come from ``generator``."""

    def merge_other(self, versions: Versions, t: int) -> Tensor:
        """Any other tensor: ``(θ + θt) / 2``, θ1 at t = 1."""
        return versions.new if t == 1 else (versions.merged + versions.new) / 2

    def plan(self, sources: Sources, progress: Progress) -> Plan:
        """One formula for the chosen Linears, one for the rest."""
        del progress
        return Plan(partial(self._merge, sources, self.linear_weights(sources.state.base)))

    def _merge(
        self, sources: Sources, linears: Mapping[str, LinearGroup], name: str, versions: Versions
    ) -> Tensor:
        if name not in linears:
            return self.merge_other(versions, sources.t)
        turned = linears[name].turned
        exact = Versions(*(turned(tensor.double()) for tensor in versions))
        generator = named_generator(sources.arrival.seed, name)
        return turned(exact.base + self.merge_linear(*exact.vectors(), sources.t, generator))


def named_generator(seed: int, name: str) -> torch.Generator:
    """A generator of its own for every tensor: no draw depends on which tensors were merged before."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def adam(
    start: Sequence[Tensor], gradient: Callable[..., Sequence[Tensor]], *, lr: float, steps: int
) -> list[Tensor]:
    """``steps`` steps of Adam from ``start``; ``gradient(*parameters)`` gives one gradient for each."""
    parameters = [tensor.clone() for tensor in start]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    for _ in range(steps):
        for parameter, slope in zip(parameters, gradient(*parameters), strict=True):
            parameter.grad = slope
        optimizer.step()
    return [parameter.detach() for parameter in parameters]
