"""Which samples a gate is adapted on, and in which batches. Everything comes from one generator."""

from typing import Literal

import torch
from torch import Tensor

from mingle.errors import SeedsError

SeedSelection = Literal["random", "teacher", "label"]


def select_seeds(
    how: SeedSelection,
    pool_size: int,
    wanted: int,
    generator: torch.Generator,
    *,
    classes: Tensor | None = None,
) -> Tensor:
    """Indices (n,) of at most ``wanted`` samples of a pool, in random order.

    ``random`` draws without looking. ``teacher`` and ``label`` take turns over ``classes`` (pool_size,) –
    the teacher's predictions or the true labels – so that every class that occurs gives about as many.
    Raises SeedsError for an empty pool and for ``label`` without one label per sample.
    """
    if pool_size == 0:
        raise SeedsError("seeds: the pool is empty; give at least one unlabelled sample of the task")
    order = torch.randperm(pool_size, generator=generator)
    if how == "random":
        return order[:wanted]
    if classes is None:
        raise SeedsError(
            "seeds: selection 'label' needs labels and these seeds have none (folders must be named like the "
            "classes); use 'random' or 'teacher'"
        )
    if len(classes) != pool_size:
        raise SeedsError(f"seeds: expected one label per sample, {pool_size}, found {len(classes)}")
    shuffled = classes[order]
    turn = torch.zeros_like(order)
    for label in torch.unique(shuffled):
        members = shuffled == label
        turn[members] = torch.arange(int(members.sum()))
    return order[turn.argsort(stable=True)][:wanted]


def draw_batches(samples: int, batch_size: int, steps: int, generator: torch.Generator) -> list[Tensor]:
    """Index lists, one per step: the samples in random order, reshuffled whenever they run out.

    A batch never holds a sample twice: what is left of a pass, when less than a batch, is dropped.
    """
    size = min(batch_size, samples)
    batches: list[Tensor] = []
    while len(batches) < steps:
        order = torch.randperm(samples, generator=generator)
        batches.extend(torch.split(order[: samples - samples % size], size))
    return batches[:steps]
