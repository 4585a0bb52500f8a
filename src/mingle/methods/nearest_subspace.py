"""A router without training: each sample goes to the expert whose input subspace it lies nearest to."""

from typing import Any, Literal

from pydantic import Field

from mingle.layers import MixtureLinear, SubspaceGate
from mingle.methods._mingle_options import ExpertOptions
from mingle.methods.base_method import State
from mingle.methods.base_router import RouterMethod


class NearestSubspaceOptions(ExpertOptions):
    """``scores``: what becomes of the cosines – ``softmax`` at ``temperature``, or 1 for the largest only.

    The idea (Arrow, arXiv 2405.11157) leaves both open; the temperature is that of a cosine.
    """

    scores: Literal["softmax", "top1"] = "softmax"
    temperature: float = Field(0.1, gt=0)


PRESETS: dict[str, dict[str, Any]] = {"default": {}, "top1": {"scores": "top1"}}


class NearestSubspace(RouterMethod[NearestSubspaceOptions]):
    """``g(x) = softmax(s / τ)``, ``s_i = ‖V_i V_iᵀ x̄‖ / ‖x̄‖``, V_i the row space of A_i, layer by layer.

    s_i is the cosine of the layer's pooled input to its projection on the expert's input subspace. Arrow
    takes the first singular vector only and routes every token; here it is the whole subspace and the sample.
    """

    options_type = NearestSubspaceOptions
    presets = PRESETS

    def route(self, layer: MixtureLinear, state: State, task: str | None) -> None:
        """A gate made of the layer's own experts."""
        del state, task
        temperature = self.options.temperature if self.options.scores == "softmax" else None
        layer.gate = SubspaceGate(layer.A, layer.task_of_rank, temperature)


PLUGIN = NearestSubspace
