"""Methods whose state is one set of weights and whose update works tensor by tensor."""

from abc import abstractmethod
from typing import Generic

from torch import Tensor, nn

from mingle.methods.base_method import Arrival, Method, OptionsT, Progress, State, Step, silent


class ParameterwiseMethod(Method[OptionsT], Generic[OptionsT]):
    """``θ ← merge(θ0, θ, θt, t)`` for each tensor of the model; a step stores the merged weights."""

    @abstractmethod
    def merge(self, base: Tensor, merged: Tensor, new: Tensor, t: int) -> Tensor:
        """One tensor after task t (1, 2, …): θ0, θ after t − 1 tasks (θ0 at t = 1) and θt."""

    def update(self, state: State, arrival: Arrival, progress: Progress = silent) -> State:
        """Merges every tensor; seeds are not used."""
        base, t = state.base, len(state.steps) + 1
        previous = state.steps[-1].tensors["weights"] if state.steps else base.tensors
        weights: dict[str, Tensor] = {}
        for done, (name, origin) in enumerate(sorted(base.tensors.items()), start=1):
            present = name in arrival.checkpoint.entries
            new = arrival.checkpoint.tensor(name, base.dtype) if present else origin
            weights[name] = self.merge(origin, previous[name], new, t)
            progress("tensors", done, len(base.tensors))
        return state.append(Step(arrival.name, {"weights": weights}, arrival.head))

    def model(self, state: State, task: str | None = None) -> nn.Module:
        """The base's class with the merged weights."""
        del task
        if not state.steps:
            return state.base.model()
        backbone = state.base.backbone
        return backbone.load(
            backbone.skeleton(state.base.checkpoint), dict(state.steps[-1].tensors["weights"])
        )
