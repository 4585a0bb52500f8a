"""Do seeds look like the checkpoint's task? One line where they do not; nothing is ever refused.

A fine-tuned model is sure of most samples of its own task and finds many classes among them. Of samples of
another task it is unsure, or says the same of all. Where the limits come from: ``benchmarks/seed_check.py``.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mingle.backbones import count, split, take
from mingle.backbones.base_backbone import FORWARD_BATCH
from mingle.methods.base_method import Arrival, Base, State

ASKED, FEWEST = 48, 32
"""How many seeds the checkpoint is asked about at most, and how many it takes to say anything: the numbers
that the limits below were measured at."""

NEAR = 2.5
"""Means this many times further apart than chance has them are still those of one task."""


SURE, ALIKE = 0.5, 0.1
"""The sureness that clears seeds of few classes, and the information below which they are of one at most."""


class SeedLooks(NamedTuple):
    """What a checkpoint makes of N seeds, see `seed_looks`; all but their number are at most about 1."""

    seeds: int
    information: float
    sureness: float
    entropy: float

    @property
    def expected(self) -> float:
        """The least information that raises no doubt; fewer seeds say less."""
        return 0.72 - 2 / math.sqrt(self.seeds)

    @property
    def doubtful(self) -> bool:
        """Whether the seeds do not look like the checkpoint's task."""
        unsure = self.information < self.expected and self.sureness < SURE
        return unsure or self.information < ALIKE


def seed_looks(logits: Tensor) -> SeedLooks:
    """Of logits (N, C), N and C ≥ 2, p = softmax: ``I = H(E p) − E H(p)``, as a share of ``log min(N, C)``
    (information) and of ``H(E p)`` (sureness, which few classes do not lower); ``E H(p) / log C`` (entropy).

    I is the mutual information of sample and predicted class: all of it is there where the model is sure of
    each sample and finds every class as often.
    """
    log_p = logits.double().log_softmax(-1)
    marginal = log_p.exp().mean(0)
    entropy = float(-(log_p.exp() * log_p).sum(-1).mean())
    total = float(-torch.xlogy(marginal, marginal).sum())
    samples, classes = logits.shape
    return SeedLooks(
        seeds=samples,
        information=(total - entropy) / math.log(min(samples, classes)),
        sureness=(total - entropy) / total if total > 0 else 0.0,
        entropy=entropy / math.log(classes),
    )


def look_at_seeds(base: Base, arrival: Arrival, teacher: nn.Module | None = None) -> SeedLooks | None:
    """What the checkpoint says of evenly spaced seeds of the pool; ``teacher``: its model, if at hand.

    None without a head, with too few seeds or classes, and for models that answer in words.
    """
    pool, head = arrival.seeds, arrival.head
    if pool is None or head is None or base.backbone.writes:
        return None
    size = count(pool.batch)
    if len(head.classes) < 2 or size < FEWEST:
        return None
    asked = min(size, ASKED)
    chosen = take(pool.batch, torch.arange(asked) * size // asked)
    if teacher is None:
        teacher = base.backbone.build(arrival.checkpoint, base.checkpoint, base.dtype)
    with torch.no_grad():
        parts = split(chosen, FORWARD_BATCH)
        logits = torch.cat([base.backbone.class_logits(teacher, part, head) for part in parts])
    # What is not finite is for adaptation to refuse.
    return seed_looks(logits) if torch.isfinite(logits).all() else None


def nearest_task(state: State, router: Mapping[str, Tensor], seeds: int) -> str | None:
    """The earlier task whose router statistics are those of the new seeds, as far as their means can tell.

    ``‖m − m_i‖² ≤ 2.5 (tr Σ / n + tr Σ_i / n_i)``, over all places where routers read, with
    ``tr Σ = ‖F‖² − ‖m‖²``; about 1 is what two draws from one task give. ``router``: the tensors of the new
    step, with F as long as its seeds make it. None where no task is as near, or there are no statistics.
    """
    means = [name for name in router if name.endswith(".mean")]
    distances = {}
    for step in state.steps if means else ():
        earlier = step.tensors["router"]
        chance = _spread(router, means) / seeds + _spread(earlier, means) / step.report["seeds"]["used"]
        apart = sum(float((router[name] - earlier[name]).square().sum()) for name in means)
        distances[step.task] = apart / max(chance, torch.finfo(torch.float64).tiny)
    nearest = min(distances, key=distances.__getitem__, default=None)
    return nearest if nearest is not None and distances[nearest] <= NEAR else None


def _spread(router: Mapping[str, Tensor], means: list[str]) -> float:
    factors = (router[name.removesuffix("mean") + "factor"] for name in means)
    squares = sum(float(factor.square().sum()) for factor in factors)
    return squares - sum(float(router[name].square().sum()) for name in means)


def seed_check(
    state: State,
    task: str,
    router: Mapping[str, Tensor],
    seeds: Mapping[str, Any],
    looks: SeedLooks | None,
) -> dict[str, Any]:
    """``seed_check`` of a step's report: what was found and expected, and a ``warning`` where it is less.

    ``router``: see `nearest_task`; ``seeds``: the report on the step's seeds. Empty without ``looks``.
    """
    if looks is None:
        return {}
    found: dict[str, Any] = {**looks._asdict(), "expected": looks.expected}
    if not looks.doubtful:
        return {"seed_check": found}
    near = nearest_task(state, router, seeds["used"])
    where = "" if near is None else f", and they lie where the seeds of task {near!r} lay"
    warning = (
        f"task {task!r}: seeds from {seeds['source']} do not look like its task: the checkpoint tells them "
        f"apart with {looks.information:.2f} of the possible information, expected {looks.expected:.2f} or "
        f"more{where}; check that they are of this task and of several classes"
    )
    return {"seed_check": {**found, "nearest": near, "warning": warning}}
