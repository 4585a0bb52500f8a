"""Methods whose state is one set of weights, and which read and write it one tensor at a time.

``update`` returns a step whose tensors do not exist yet: each is merged when it is asked for. A run
writes them to disk one after the other, so the memory needed is a few times the largest tensor, whatever
the number of tensors and tasks. In memory a tensor is merged once and remembered. The checkpoint has to
stay where it is until then.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple

import torch
from torch import Tensor

from mingle.errors import DivergedError
from mingle.methods.base_method import Arrival, OptionsT, Progress, State, Step, silent
from mingle.methods.base_weights import WeightsMethod
from mingle.weights import LazyTensors, Spec


class Versions(NamedTuple):
    """One tensor as it is in θ0, in θ after t − 1 tasks (θ0 at t = 1) and in θt."""

    base: Tensor
    merged: Tensor
    new: Tensor

    def vectors(self) -> tuple[Tensor, Tensor]:
        """The merged vector ``θ − θ0`` and the task vector ``Δt = θt − θ0``."""
        return self.merged - self.base, self.new - self.base

    def parts(self, size: int) -> "Iterator[Versions]":
        """The same in flat parts of at most ``size`` entries, for formulas with many intermediate results."""
        flat = (torch.split(tensor.reshape(-1), size) for tensor in self)
        return map(Versions._make, zip(*flat, strict=True))


@dataclass(frozen=True)
class Sources:
    """Every tensor before step t, read when it is asked for."""

    state: State
    arrival: Arrival

    @property
    def t(self) -> int:
        """The number of the arriving task, from 1."""
        return len(self.state.steps) + 1

    def names(self) -> tuple[str, ...]:
        """Every tensor of the model, sorted."""
        return self.state.base.checkpoint.names()

    def numel(self, name: str) -> int:
        """Number of entries of a tensor."""
        return torch.Size(self.state.base.checkpoint.entries[name].shape).numel()

    def versions(self, name: str) -> Versions:
        """θ0, θ and θt of one tensor."""
        base = self.state.base
        origin = base.checkpoint.tensor(name, base.dtype)
        return Versions(origin, self.stored("weights", name) if self.state.steps else origin, self.new(name))

    def new(self, name: str) -> Tensor:
        """θt of one tensor; what the checkpoint leaves out is the base's."""
        base, checkpoint = self.state.base, self.arrival.checkpoint
        return (checkpoint if name in checkpoint.entries else base.checkpoint).tensor(name, base.dtype)

    def stored(self, stem: str, name: str) -> Tensor:
        """A tensor of the newest step."""
        return self.state.steps[-1].tensors[stem][name]

    def visit(self, look: Callable[[str, Versions], None], what: str, progress: Progress) -> None:
        """Shows every tensor to ``look``, for what a method has to know before it can merge any of them."""
        for done, name in enumerate(self.names(), start=1):
            look(name, self.versions(name))
            progress(what, done, len(self.names()))


@dataclass(frozen=True)
class Plan:
    """How one step merges: ``merge(name, versions)`` gives θ; ``extra`` holds other tensors to store."""

    merge: Callable[[str, Versions], Tensor]
    report: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


class StreamingMethod(WeightsMethod[OptionsT], Generic[OptionsT]):
    """A step stores the merged weights, computed tensor by tensor when they are asked for."""

    @abstractmethod
    def plan(self, sources: Sources, progress: Progress) -> Plan:
        """What step t does to each tensor; passes over all tensors, if it needs any, happen here."""

    def update(self, state: State, arrival: Arrival, progress: Progress = silent) -> State:
        """One more step; seeds are not used. Asking for its tensors raises DivergedError if one is not
        finite.
        """
        sources = Sources(state, arrival)
        plan = self.plan(sources, progress)
        made: set[str] = set()

        def make(name: str) -> Tensor:
            merged = plan.merge(name, sources.versions(name)).to(state.base.dtype)
            if not torch.isfinite(merged).all():
                raise DivergedError(
                    f"task {arrival.name!r}: {name}: merging gave non-finite values; "
                    f"use a smaller lr or scale of method {self.name()!r}"
                )
            if name not in made:
                made.add(name)
                progress("tensors", len(made), len(sources.names()))
            return merged

        weights = lazily(sources, make, state.base.dtype)
        return state.append(Step(arrival.name, {"weights": weights, **plan.extra}, arrival.head, plan.report))


def lazily(sources: Sources, make: Callable[[str], Tensor], dtype: torch.dtype) -> LazyTensors:
    """A tensor of the base's shape for every tensor of the base."""
    entries = sources.state.base.checkpoint.entries
    return LazyTensors({name: Spec(entries[name].shape, dtype) for name in entries}, make, keep=True)
