"""Weight-ensembling mixtures of experts (WEMoE, arXiv 2402.00433) in continual form.

Tensors of a step: ``experts``, what the task adds to the Linears of the MLPs: ``<linear>.weight``
(d_out, d_in) or its factors ``.A`` and ``.B``, and ``<linear>.bias``; ``routers``, the router of every MLP
as of that step; ``weights``, all other tensors of the merged model.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from mingle.layers import LinearGroup, LowRankExpert, RoutedMLP, TokenRouter, wrap
from mingle.methods._seed_samples import (
    REFERENCE_SEEDS,
    SeedMethod,
    SeedOptions,
    derived_generator,
    draw_seeds,
    minimise_entropy,
)
from mingle.methods.base_method import Arrival, Base, Progress, State, Step, silent
from mingle.weights import task_vector

SITES = "mlp"
PRESETS: dict[str, dict[str, Any]] = {"default": {}, "reference": REFERENCE_SEEDS}
"""``reference``: the seeds are drawn as by the released continual code."""


class WemoeOptions(SeedOptions):
    """``gate_start``: every new expert's gate before training. ``scale``: λ of what is not an MLP.

    ``lr`` is the same at every width: at 6e-4 minimising the entropy for 50 steps loses the task itself
    (glyph8: accuracy of a task just added 0.65 before, 0.15 after).
    """

    gate_start: float = 0.3
    scale: float = Field(0.3, gt=0)
    lr: float = Field(1e-4, gt=0)


WemoeOptionsT = TypeVar("WemoeOptionsT", bound=WemoeOptions)


class WemoeMethod(SeedMethod[WemoeOptionsT], Generic[WemoeOptionsT]):
    """MLP: ``W0 + Σ_i g_i(x) Δ_i`` with one router g per MLP; all else: ``θ ← θ + λ (θt − θ0)``.

    ``g(x) = mean over tokens of W2 relu(W1 x + b1) + b2``, trained to minimise the entropy of the predictions
    on the newest task's seeds. W1 ~ N(0, 0.01²), b1 = 0 at the first task. Continual form, our choice: the
    router is kept and trained on – a task adds a row to it (W2 row 0, b2 0.3) and then the WHOLE router,
    older rows included, trains on seeds that are of the newest task only. That is what forgets.
    """

    def settings(self, base: Base) -> dict[str, Any]:
        """Raises ConfigError for a base whose MLPs are no modules that a router could serve."""
        _mlps(base)
        return super().settings(base)

    @abstractmethod
    def expert(self, delta: Tensor, base: Base) -> dict[str, Tensor]:
        """What is kept of the task vector of one weight: ``weight``, or ``A`` and ``B``."""

    def update(self, state: State, arrival: Arrival, progress: Progress = silent) -> State:
        """Adds the task's experts, then trains the routers.

        Raises SeedsError without seeds, CheckpointError without a head, DivergedError.
        """
        base = state.base
        generator = derived_generator(arrival, len(state.steps))
        seeds = draw_seeds(arrival, self.options, generator)
        tensors = {
            "experts": self._experts(base, arrival),
            "routers": self._routers(state, generator),
            "weights": self._rest(state, arrival),
        }
        grown = state.append(Step(arrival.name, tensors))
        model, routers = _assemble(grown)
        trained = [p for router in routers.values() for p in router.requires_grad_().parameters()]
        optimizer = torch.optim.Adam(trained, lr=self.options.lr)
        losses = minimise_entropy(base, model, seeds, optimizer, self.options, generator, progress)
        tensors["routers"] = {
            f"{mlp}.{name}": tensor.detach()
            for mlp, router in routers.items()
            for name, tensor in router.named_parameters()
        }
        report = {"settings": self.settings(base), "losses": losses, "seeds": seeds.report}
        return state.append(Step(arrival.name, tensors, arrival.head, report))

    def model(self, state: State, task: str | None = None) -> nn.Module:
        """The base's class with a RoutedMLP in place of every MLP."""
        del task
        return _assemble(state)[0] if state.steps else state.base.model()

    def _experts(self, base: Base, arrival: Arrival) -> dict[str, Tensor]:
        experts: dict[str, Tensor] = {}
        for linear, group in (pair for linears in _mlps(base).values() for pair in linears.items()):
            delta = task_vector(base.checkpoint, arrival.checkpoint, f"{linear}.weight", base.dtype)
            kept = self.expert(group.turned(delta), base)
            experts |= {f"{linear}.{name}": tensor for name, tensor in kept.items()}
            if f"{linear}.bias" in base.checkpoint.entries:
                bias = task_vector(base.checkpoint, arrival.checkpoint, f"{linear}.bias", base.dtype)
                experts[f"{linear}.bias"] = bias
        return experts

    def _routers(self, state: State, generator: torch.Generator) -> dict[str, Tensor]:
        """The routers of the last step with a row for the new task."""
        routers = dict(state.steps[-1].tensors["routers"]) if state.steps else {}
        for mlp, linears in _mlps(state.base).items():
            name, group = next(iter(linears.items()))
            first = group.turned(state.base.tensors[f"{name}.weight"])
            width = first.shape[1]
            if not state.steps:
                hidden = 0.01 * torch.randn(width, width, generator=generator, dtype=first.dtype)
                routers[f"{mlp}.hidden_weight"] = hidden
                routers[f"{mlp}.hidden_bias"] = first.new_zeros(width)
                routers[f"{mlp}.weight"], routers[f"{mlp}.bias"] = (
                    first.new_zeros(0, width),
                    first.new_zeros(0),
                )
            row, start = first.new_zeros(1, width), first.new_full((1,), self.options.gate_start)
            routers[f"{mlp}.weight"] = torch.cat([routers[f"{mlp}.weight"], row])
            routers[f"{mlp}.bias"] = torch.cat([routers[f"{mlp}.bias"], start])
        return routers

    def _rest(self, state: State, arrival: Arrival) -> dict[str, Tensor]:
        """Task arithmetic for every tensor outside the MLPs."""
        base = state.base
        routed = {f"{linear}." for linears in _mlps(base).values() for linear in linears}
        previous = state.steps[-1].tensors["weights"] if state.steps else base.tensors
        return {
            name: previous[name]
            + self.options.scale * task_vector(base.checkpoint, arrival.checkpoint, name, base.dtype)
            for name in base.checkpoint.names()
            if not name.startswith(tuple(routed))
        }


def _assemble(state: State) -> tuple[nn.Module, dict[str, TokenRouter]]:
    """The merged model, frozen, and its routers by MLP."""
    base, newest = state.base, state.steps[-1].tensors
    model = base.model({**base.tensors, **newest["weights"]})
    layers = wrap(model, base.backbone.groups(model, SITES))
    routers: dict[str, TokenRouter] = {}
    for mlp, linears in _mlps(base).items():
        tensors = {name: newest["routers"][f"{mlp}.{name}"] for name in TokenRouter.NAMES}
        routers[mlp] = TokenRouter(tensors).requires_grad_(False)
        for linear in linears:
            layers[linear].extend(_factors(step.tensors["experts"], linear) for step in state.steps)
        inside = [layers[linear] for linear in linears]
        model.set_submodule(mlp, RoutedMLP(model.get_submodule(mlp), inside, routers[mlp]))
    return model.eval(), routers


def _mlps(base: Base) -> dict[str, dict[str, LinearGroup]]:
    """The Linears of every MLP, with their groups, by the name of their parent module.

    What reads the MLP's input comes first.
    """
    mlps: dict[str, dict[str, LinearGroup]] = {}
    for group in base.backbone.groups(base.outline, SITES):
        for name in group.linears:
            mlps.setdefault(name.rpartition(".")[0], {})[name] = group
    return mlps


def _factors(experts: Mapping[str, Tensor], linear: str) -> LowRankExpert:
    """A full task vector is a factor itself, the other one being the identity on the smaller side."""
    bias = experts.get(f"{linear}.bias")
    if f"{linear}.A" in experts:
        return LowRankExpert(experts[f"{linear}.A"], experts[f"{linear}.B"], bias)
    delta = experts[f"{linear}.weight"]
    identity = torch.eye(min(delta.shape), dtype=delta.dtype)
    wide = delta.shape[0] < delta.shape[1]
    return LowRankExpert(*((delta, identity) if wide else (identity, delta)), bias)
