"""Gates by ridge regression on stored second moments: no labels, no teacher, no gradient.

Shapes: X (n, d̃) what a router reads of n samples of one task; F (q, d̃), q ≤ n; W (T, d̃).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mingle.errors import DivergedError


class RouterStatistics(NamedTuple):
    """What is kept of one task's samples: ``E[x̃ x̃ᵀ] = FᵀF`` and ``m = E[x̃]``, in float64."""

    factor: Tensor
    mean: Tensor


def router_statistics(read: Tensor, rank: int | None = None) -> RouterStatistics:
    """The statistics of X: ``X / √n = U diag(S) Vᵀ``, ``F = diag(S) Vᵀ``; of at most ``rank`` rows.

    Exact for ``rank ≥ min(n, d̃)``; beyond that the second moment loses its smallest directions. The rows of F
    are no samples: they are turned to the principal axes of all of them.
    """
    exact = read.detach().double()
    singular, axes = torch.linalg.svd(exact / len(exact) ** 0.5, full_matrices=False)[1:]
    return RouterStatistics((singular[:, None] * axes)[:rank].contiguous(), exact.mean(0))


def solve_router(tasks: Sequence[RouterStatistics], ridge: float) -> Tensor:
    """``W = (R + ρ·mean(diag R)·I)⁻¹ [m_1 … m_T]``, transposed: (T, d̃), ``R = Σ_i F_iᵀ F_i``.

    The least-squares solution for scores of 1 on a task's own samples and 0 on those of all others, every
    task weighing the same. Sums over tasks are all it needs, so that adding one task after the other gives
    what solving for all seeds at once does (recursive least squares, as in ACIL, arXiv 2205.14922).
    With F all rows of all F_i and λ the ridge, ``W = (M − Fᵀ (λI + F Fᵀ)⁻¹ F M) / λ``, which is what is
    computed while there are fewer rows than d̃ (Woodbury). Raises DivergedError where a row is not finite.
    """
    means = torch.stack([task.mean for task in tasks], dim=1)
    return _regressed(tasks, ridge, means).mT.contiguous()


def left_out_scores(tasks: Sequence[RouterStatistics], read: Tensor, ridge: float) -> Tensor:
    """What the solution scores each sample of the last task if it is solved without that sample: (n, T).

    By Sherman and Morrison, with ``h = x̃ᵀ (R + λI)⁻¹ x̃ / n``: ``W x̃ / (1 − h)``, and ``(w x̃ − h) / (1 − h)``
    for the sample's own task. λ and the weights 1/n of the others stay. ``read``: X, of which the statistics
    of the last task hold everything. Raises DivergedError where a row is not finite.
    """
    exact = read.detach().double()
    means = torch.stack([task.mean for task in tasks], dim=1)
    found = _regressed(tasks, ridge, torch.cat([means, exact.mT], dim=1))
    scores, seen = exact @ found[:, : len(tasks)], found[:, len(tasks) :].mT
    leverage = (exact * seen).sum(dim=1, keepdim=True) / len(exact)
    scores[:, -1:] -= leverage
    return scores / (1 - leverage)


def _regressed(tasks: Sequence[RouterStatistics], ridge: float, right: Tensor) -> Tensor:
    """``(R + ρ·mean(diag R)·I)⁻¹ right``."""
    factor = torch.cat([task.factor for task in tasks])
    if not torch.isfinite(factor).all():
        raise DivergedError("router: what the seeds look like inside the model is not finite")
    rows, width = factor.shape
    # Of zeros alone (no seed reaches the router) the solution is zero too.
    strength = (ridge * factor.square().sum() / width).clamp_min(torch.finfo(torch.float64).tiny)
    if rows >= width:
        return _solved(factor.mT @ factor, strength, right)
    inside = factor.mT @ _solved(factor @ factor.mT, strength, factor @ right)
    return (right - inside) / strength


def _solved(moment: Tensor, strength: Tensor, right: Tensor) -> Tensor:
    """``(moment + strength·I)⁻¹ right``."""
    lower = torch.linalg.cholesky(moment + strength * torch.eye(len(moment), dtype=moment.dtype))
    return torch.cholesky_solve(right, lower)
