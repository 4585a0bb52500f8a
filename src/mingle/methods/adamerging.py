"""Layer-wise AdaMerging (arXiv 2310.02575) in two continual forms."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from mingle.methods._seed_samples import (
    REFERENCE_SEEDS,
    SeedMethod,
    SeedOptions,
    derived_generator,
    draw_seeds,
    minimise_entropy,
)
from mingle.methods.base_method import Arrival, Base, Progress, State, Step, silent
from mingle.methods.base_weights import WeightsMethod
from mingle.weights import task_vector


class AdamergingOptions(SeedOptions):
    """``start``: what the task vector is added to – the ``merged`` model, or the ``base`` at every task.

    ``lr`` is the same at every width: a coefficient is a share of a task vector.
    """

    start: Literal["merged", "base"] = "merged"
    coefficient: float = 0.3
    lr: float = Field(1e-4, gt=0)


PRESETS: dict[str, dict[str, Any]] = {"default": {}, "reference": {"start": "base"} | REFERENCE_SEEDS}


class Adamerging(SeedMethod[AdamergingOptions], WeightsMethod[AdamergingOptions]):
    """``θ ← θ_start + Σ_l λ_l Δt_l``, one λ per parameter tensor, trained to minimise entropy on the seeds.

    θ_start is the merged model, or θ0 as in the released continual code, which so keeps the newest task
    only (preset ``reference``). λ starts at 0.3 and is trained with Adam; it is neither clamped nor shared
    between tasks.
    """

    options_type = AdamergingOptions
    presets = PRESETS

    def update(self, state: State, arrival: Arrival, progress: Progress = silent) -> State:
        """Trains the coefficients of the task and stores the merged weights; the report has both.

        Raises SeedsError without seeds, CheckpointError without a head, DivergedError.
        """
        base, options = state.base, self.options
        generator = derived_generator(arrival, len(state.steps))
        seeds = draw_seeds(arrival, options, generator)
        start = self.weights(state) if options.start == "merged" else base.tensors
        names = sorted(base.tensors)
        deltas = {n: task_vector(base.checkpoint, arrival.checkpoint, n, base.dtype) for n in names}
        model = _Interpolated(base, {n: start[n] for n in names}, deltas, options.coefficient)
        optimizer = torch.optim.Adam([model.coefficients], lr=options.lr)
        losses = minimise_entropy(base, model, seeds, optimizer, options, generator, progress)
        with torch.no_grad():
            weights = model.weights()
        report = {
            "settings": self.settings(base),
            "coefficients": dict(zip(names, model.coefficients.tolist(), strict=True)),
            "losses": losses,
            "seeds": seeds.report,
        }
        return state.append(Step(arrival.name, {"weights": weights}, arrival.head, report))


class _Interpolated(nn.Module):
    """The base's model whose weights are ``start + λ Δ``: gradients reach the coefficients only."""

    def __init__(self, base: Base, start: dict[str, Tensor], deltas: dict[str, Tensor], value: float) -> None:
        super().__init__()
        # In a tuple: the skeleton's own weights are never used and must not be registered.
        self._fixed = (base.model(), start, deltas)
        self.coefficients = nn.Parameter(torch.full((len(deltas),), value, dtype=base.dtype))

    def weights(self) -> dict[str, Tensor]:
        _, start, deltas = self._fixed
        pairs = zip(deltas.items(), self.coefficients, strict=True)
        return {name: start[name] + value * delta for (name, delta), value in pairs}

    def forward(self, *args: Any, **inputs: Any) -> Any:  # noqa: ANN401 – whatever the base's class takes
        return functional_call(self._fixed[0], self.weights(), args, inputs)


PLUGIN = Adamerging
