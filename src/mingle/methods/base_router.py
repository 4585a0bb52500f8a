"""Methods that route between the same experts as mingle's, by another gate that needs no training."""

from abc import abstractmethod
from typing import Any, Generic, TypeVar

from torch import nn

from mingle.layers import MixtureLinear
from mingle.methods._mingle_experts import build_experts, mount_experts
from mingle.methods._mingle_options import ExpertOptions
from mingle.methods._mingle_resolve import resolve
from mingle.methods.base_method import Arrival, Base, Method, Progress, State, Step, silent

ExpertOptionsT = TypeVar("ExpertOptionsT", bound=ExpertOptions)


class RouterMethod(Method[ExpertOptionsT], Generic[ExpertOptionsT]):
    """``y = W0 x + b0 + Σ_i g_i(x) · B_i A_i x`` with mingle's experts; the subclass says what g is."""

    @abstractmethod
    def route(self, layer: MixtureLinear, state: State, task: str | None) -> None:
        """Gives a layer that holds the experts of all tasks its gate."""

    def settings(self, base: Base) -> dict[str, Any]:
        """Every option with the value that is used. Raises UnknownNameError for the sites."""
        return self.options.model_dump() | {"rank": resolve(self.options, base).rank}

    def update(self, state: State, arrival: Arrival, progress: Progress = silent) -> State:
        """Builds the experts of the task; seeds are not used."""
        options = resolve(self.options, state.base)
        experts, energy = build_experts(state, arrival, options, {}, progress)
        report = {"settings": self.settings(state.base), "energy": energy}
        return state.append(Step(arrival.name, {"experts": experts}, arrival.head, report))

    def model(self, state: State, task: str | None = None) -> nn.Module:
        """The base's class with a MixtureLinear at every merged site."""
        model, layers = mount_experts(state, resolve(self.options, state.base))
        for layer in layers.values():
            self.route(layer, state, task)
        return model
