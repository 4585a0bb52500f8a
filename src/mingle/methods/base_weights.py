"""Methods whose state is one set of weights; a step stores all of them."""

from collections.abc import Mapping
from typing import Generic

from torch import Tensor, nn

from mingle.methods.base_method import Method, OptionsT, State


class WeightsMethod(Method[OptionsT], Generic[OptionsT]):
    """The merged model is the newest step's ``weights``, or the base before the first task."""

    @staticmethod
    def weights(state: State) -> Mapping[str, Tensor]:
        """θ after the tasks so far; θ0 before the first."""
        return state.steps[-1].tensors["weights"] if state.steps else state.base.tensors

    def model(self, state: State, task: str | None = None) -> nn.Module:
        """The base's class with the merged weights."""
        del task
        return state.base.model(self.weights(state))
