"""The bound of a sequentially fine-tuned model: nothing is merged, one model is trained task after task."""

from typing import Any

import torch
from pydantic import Field

from mingle.adaptation import draw_batches, minimise
from mingle.backbones import count
from mingle.config import Options
from mingle.methods._mingle_options import REFERENCE_WIDTH
from mingle.methods._seed_samples import (
    LabelledMethod,
    cross_entropy_on,
    derived_generator,
    require_labels,
    seed_report,
)
from mingle.methods.base_method import Arrival, Base, Progress, State, Step, silent
from mingle.methods.base_weights import WeightsMethod


class SequentialOptions(Options):
    """``lr`` left out follows the width d: ``1e-5 · max(1, (768/d)²)``, the usual one for CLIPs at d = 768.

    Squared, because small models are fine-tuned with far more: 5e-4 those of glyph8, at width 128.
    """

    steps: int = Field(500, ge=0)
    lr: float | None = Field(None, gt=0)
    batch_size: int = Field(32, ge=1)
    weight_decay: float = Field(0.01, ge=0)


class Sequential(LabelledMethod[SequentialOptions], WeightsMethod[SequentialOptions]):
    """``θt = argmin over θ of the cross-entropy on task t's labelled samples``, from θ(t−1), by AdamW.

    Trains every tensor but those a fine-tuned checkpoint may leave out (a CLIP's projection). Of the arriving
    checkpoint only the head is used, and it stays frozen. A step stores all weights.
    """

    options_type = SequentialOptions

    def settings(self, base: Base) -> dict[str, Any]:
        """Every option with the value that is used."""
        width = base.backbone.width(base.outline)
        lr = self.options.lr or round(1e-5 * max(1.0, REFERENCE_WIDTH / width) ** 2, 7)
        return self.options.model_dump() | {"lr": lr}

    def update(self, state: State, arrival: Arrival, progress: Progress = silent) -> State:
        """Fine-tunes the model on the task.

        Raises SeedsError without labelled samples, CheckpointError without a head, DivergedError.
        """
        pool, labels, head = require_labels(arrival)
        base, options, settings = state.base, self.options, self.settings(state.base)
        samples, generator = count(pool.batch), derived_generator(arrival, len(state.steps))
        batches = draw_batches(samples, options.batch_size, options.steps, generator)
        # A copy: the weights of the last step must not be trained in place.
        weights = {name: tensor.clone() for name, tensor in self.weights(state).items()}
        model = base.backbone.load(base.backbone.skeleton(base.checkpoint), weights)
        optional = base.backbone.optional
        trained = [p.requires_grad_() for name, p in model.named_parameters() if name not in optional]
        losses = minimise(
            torch.optim.AdamW(trained, lr=settings["lr"], weight_decay=options.weight_decay),
            cross_entropy_on(base, model, pool.batch, labels, head),
            batches,
            report=lambda done, value: progress(f"training, loss {value:.4f}", done, len(batches)),
        )
        found = model.state_dict()
        seeds = seed_report(pool, "all", torch.arange(samples))
        report = {"settings": settings, "losses": losses, "seeds": seeds}
        return state.append(
            Step(arrival.name, {"weights": {n: found[n] for n in weights}}, arrival.head, report)
        )


PLUGIN = Sequential
