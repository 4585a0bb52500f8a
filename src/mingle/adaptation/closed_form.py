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


class RouterSystem:
    """``R + λI`` of the statistics of all tasks, ``R = Σ_i F_iᵀ F_i``, ``λ = ρ·mean(diag R)``, factorised.

    With F all rows of all F_i, ``(R + λI)⁻¹ = (I − Fᵀ (λI + F Fᵀ)⁻¹ F) / λ``, which is what is computed while
    there are fewer rows than d̃ (Woodbury). Raises DivergedError where a row is not finite.
    """

    def __init__(self, tasks: Sequence[RouterStatistics], ridge: float) -> None:
        self._factor = torch.cat([task.factor for task in tasks])
        self._means = torch.stack([task.mean for task in tasks], dim=1)
        if not torch.isfinite(self._factor).all():
            raise DivergedError("router: what the seeds look like inside the model is not finite")
        rows, width = self._factor.shape
        self._dual = rows < width
        # Of zeros alone (no seed reaches the router) the solution is zero too.
        tiny = torch.finfo(torch.float64).tiny
        self._strength = (ridge * self._factor.square().sum() / width).clamp_min(tiny)
        moment = self._factor @ self._factor.mT if self._dual else self._factor.mT @ self._factor
        identity = torch.eye(len(moment), dtype=moment.dtype)
        self._lower = torch.linalg.cholesky(moment + self._strength * identity)

    def weight(self) -> Tensor:
        """``W = (R + λI)⁻¹ [m_1 … m_T]``, transposed: (T, d̃).

        The least-squares solution for scores of 1 on a task's own samples and 0 on those of all others, every
        task weighing the same. Sums over tasks are all it needs, so that adding one task after the other
        gives what solving for all seeds at once does (recursive least squares, as in ACIL, arXiv 2205.14922).
        """
        return self._solved(self._means).mT.contiguous()

    def left_out_scores(self, read: Tensor) -> Tensor:
        """What W scores each sample of the last task if it is solved without that sample: (n, k, T).

        ``read`` (n, k, d̃): all that the statistics of the last task hold, X_i (k, d̃) of sample i; rows of
        zeros are none. By Woodbury, with ``H = X_i (R + λI)⁻¹ X_iᵀ / L`` and L rows in all:
        ``(I − H)⁻¹ (X_i Wᵀ − H 1 eᵀ)``, e the column of the task itself. λ and the weights 1/L of the other
        rows stay.
        """
        exact = read.detach().double()
        solved = self._solved(exact.flatten(0, 1).mT).mT.reshape(exact.shape)
        leverage = exact @ solved.mT / exact.any(dim=2).sum()
        scores = solved @ self._means
        scores[..., -1] -= leverage.sum(dim=2)
        kept = torch.eye(read.shape[1], dtype=scores.dtype) - leverage
        left_out: Tensor = torch.linalg.solve(kept, scores)
        return left_out

    def _solved(self, right: Tensor) -> Tensor:
        """``(R + λI)⁻¹ right``."""
        if not self._dual:
            return torch.cholesky_solve(right, self._lower)
        inside = torch.cholesky_solve(self._factor @ right, self._lower)
        return (right - self._factor.mT @ inside) / self._strength
