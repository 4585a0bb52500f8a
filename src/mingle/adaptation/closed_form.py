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
    factor = torch.cat([task.factor for task in tasks])
    means = torch.stack([task.mean for task in tasks], dim=1)
    if not torch.isfinite(factor).all():
        raise DivergedError("router: what the seeds look like inside the model is not finite")
    rows, width = factor.shape
    # Of zeros alone (no seed reaches the router) the solution is zero too.
    strength = (ridge * factor.square().sum() / width).clamp_min(torch.finfo(torch.float64).tiny)
    if rows >= width:
        return _solved(factor.mT @ factor, strength, means).mT.contiguous()
    inside = factor.mT @ _solved(factor @ factor.mT, strength, factor @ means)
    return ((means - inside) / strength).mT.contiguous()


def _solved(moment: Tensor, strength: Tensor, right: Tensor) -> Tensor:
    """``(moment + strength·I)⁻¹ right``."""
    lower = torch.linalg.cholesky(moment + strength * torch.eye(len(moment), dtype=moment.dtype))
    return torch.cholesky_solve(right, lower)
