"""Seed samples for methods that train on them: how they are drawn and what the report says of them."""

import hashlib
from collections.abc import Callable
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mingle.adaptation import draw_batches, minimise, prediction_entropy, select_seeds
from mingle.backbones import Batch, Head, count, take
from mingle.config import Options
from mingle.errors import SeedsError
from mingle.methods.base_method import Arrival, Base, Method, OptionsT, Progress, SeedPool, require_seeds


class SeedOptions(Options):
    """Which samples a method without a teacher is trained on."""

    steps: int = Field(50, ge=0)
    batch_size: int = Field(16, ge=1)
    seeds: Literal["random", "label"] = "random"
    seeds_per_class: int = Field(5, ge=1)
    seed_pool: Literal["held_out", "scored"] = "held_out"


REFERENCE_SEEDS: dict[str, Any] = {"seeds": "label", "seed_pool": "scored"}
"""How the released continual code draws them: balanced by true label, from the images that are scored."""


SeedOptionsT = TypeVar("SeedOptionsT", bound=SeedOptions)


class SeedMethod(Method[SeedOptionsT], Generic[SeedOptionsT]):
    """A method that trains on unlabelled seed samples, drawn as its options say."""

    @property
    def needs_seeds(self) -> bool:
        """Always."""
        return True

    @property
    def scored_seeds(self) -> bool:
        """True for ``seed_pool="scored"``."""
        return self.options.seed_pool == "scored"


class LabelledMethod(Method[OptionsT], Generic[OptionsT]):
    """A method that trains on labelled samples, all that it is given."""

    @property
    def needs_seeds(self) -> bool:
        """Always, and with labels."""
        return True

    @property
    def needs_labels(self) -> bool:
        """Always."""
        return True


class DrawnSeeds(NamedTuple):
    """Chosen samples, the task's head, and how they were chosen."""

    batch: Batch
    head: Head
    report: dict[str, Any]


def draw_seeds(arrival: Arrival, options: SeedOptions, generator: torch.Generator) -> DrawnSeeds:
    """Draws the task's seed samples. Raises SeedsError, CheckpointError."""
    pool, head = require_seeds(arrival)
    wanted = options.seeds_per_class * len(head.classes)
    chosen = select_seeds(options.seeds, count(pool.batch), wanted, generator, classes=pool.labels)
    return DrawnSeeds(take(pool.batch, chosen), head, seed_report(pool, options.seeds, chosen))


def seed_report(pool: SeedPool, selection: str, chosen: Tensor) -> dict[str, Any]:
    """What a step's report says of its seeds: source, selection, how many of how many, and which."""
    return {
        "source": pool.source,
        "selection": selection,
        "used": len(chosen),
        "pool": count(pool.batch),
        "ids": [pool.ids[i] for i in chosen.tolist()] if pool.ids else [],
    }


def require_labels(arrival: Arrival) -> tuple[SeedPool, Tensor, Head]:
    """The arrival's samples, their labels (N,) and its head. Raises SeedsError, CheckpointError."""
    pool, head = require_seeds(arrival)
    samples, labels = count(pool.batch), pool.labels
    if samples == 0 or labels is None or len(labels) != samples:
        found = "none" if labels is None else len(labels)
        raise SeedsError(
            f"task {arrival.name!r}: this method trains on labelled samples; expected one label for each of "
            f"at least one sample, found {samples} samples and {found} labels; name a folder with one "
            "subfolder per class, an array file with labels, or pass labels="
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) < len(head.classes):
        raise SeedsError(
            f"task {arrival.name!r}: expected labels from 0 to {len(head.classes) - 1}, the classes of the "
            f"head, found {int(labels.min())} to {int(labels.max())}"
        )
    return pool, labels, head


def minimise_entropy(
    base: Base,
    model: nn.Module,
    seeds: DrawnSeeds,
    optimizer: torch.optim.Optimizer,
    options: SeedOptions,
    generator: torch.Generator,
    progress: Progress,
) -> list[float]:
    """Trains what the optimizer holds until the model is sure of its predictions on the seeds.

    Returns the mean entropy of every step's batch. Raises DivergedError.
    """

    def loss(index: Tensor) -> Tensor:
        return prediction_entropy(base.backbone.class_logits(model, take(seeds.batch, index), seeds.head))

    batches = draw_batches(count(seeds.batch), options.batch_size, options.steps, generator)
    return minimise(
        optimizer,
        loss,
        batches,
        report=lambda done, value: progress(f"adapting, entropy {value:.4f}", done, len(batches)),
    )


def cross_entropy_on(
    base: Base, model: nn.Module, batch: Batch, labels: Tensor, head: Head
) -> Callable[[Tensor], Tensor]:
    """The loss ``batch indices -> mean cross-entropy of the model's predictions with the labels``."""

    def loss(index: Tensor) -> Tensor:
        return cross_entropy(base.backbone.class_logits(model, take(batch, index), head), labels[index])

    return loss


def derived_generator(arrival: Arrival, step: int) -> torch.Generator:
    """A generator that depends on the run's seed, the task and its position only.

    So a resumed run draws the same numbers.
    """
    digest = hashlib.sha256(f"{arrival.seed}/{step}/{arrival.name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
