"""The span that earlier tasks use, and steps that leave it alone.

Shapes: X (n, d) layer inputs, one row per token; U (d, K) an orthonormal basis of the protected span;
G (rows, d) a gradient or a step, one row per gate. With an augmented gate d = d_in + 1: every feature
carries a constant last coordinate 1 and the gate's bias is the last coordinate of its row.
"""

from typing import Literal

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, eigsh
from torch import Tensor

Basis = Literal["rank_revealing", "qr"]

DENSE_LIMIT = 64
"""Below this width a dense eigensolver is as fast as an iterative one."""

PANEL = 768
"""Columns of a second moment that are computed at once, from the panel's diagonal on; M is symmetric."""

NEW_DIRECTION = 1e-4
"""A direction counts as new when more than this share of its norm lies outside the basis."""


class SecondMoment:
    """Streaming uncentred second moment ``M = Σ x xᵀ`` of a layer's inputs and its top eigenvectors."""

    def __init__(self, width: int, *, augmented: bool, dtype: torch.dtype) -> None:
        size = width + augmented
        self.width, self.augmented, self.count = width, augmented, 0
        self._upper = torch.zeros(size, size, dtype=dtype)

    def add(self, inputs: Tensor, mask: Tensor | None = None) -> None:
        """Adds every token of ``inputs`` (…, width); ``mask`` (…) marks the tokens that count."""
        rows = inputs.detach().reshape(-1, self.width) if mask is None else inputs.detach()[mask.bool()]
        rows = rows.to(self._upper.dtype)
        if self.augmented:
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        for start in range(0, rows.shape[1], PANEL):
            panel = rows[:, start : start + PANEL]
            self._upper[start : start + PANEL, start:].addmm_(panel.mT, rows[:, start:])
        self.count += len(rows)

    @property
    def matrix(self) -> Tensor:
        """M (d, d)."""
        if len(self._upper) <= PANEL:
            return self._upper
        return self._upper.triu() + self._upper.triu(1).mT

    def top_directions(self, k: int) -> Tensor:
        """The k leading eigenvectors of M, largest first: (d, k') with k' = min(k, numerical rank of M).

        Lanczos (ARPACK, started and restarted from fixed vectors, so the same input gives the same bits);
        dense where the width is small or Lanczos does not converge.
        """
        matrix = self.matrix
        size = len(matrix)
        k = min(k, size)
        if k == 0 or not matrix.any():
            return matrix.new_zeros(size, 0)
        values: Tensor
        vectors: Tensor
        values, vectors = _leading(matrix, k)
        cutoff = values[0] * size * torch.finfo(matrix.dtype).eps
        leading: Tensor = vectors[:, values > cutoff]
        return leading


def _leading(matrix: Tensor, k: int) -> tuple[Tensor, Tensor]:
    size = len(matrix)
    if size > max(DENSE_LIMIT, 2 * k + 1):
        start = torch.linspace(1, 2, size, dtype=matrix.dtype).numpy()
        # Relative residual of an eigenpair; the noise of the moment itself is about as large.
        tolerance = 1e-5 if matrix.dtype == torch.float32 else 1e-12
        try:
            found, basis = eigsh(
                matrix.numpy(),
                k=k,
                which="LA",
                v0=start,
                tol=tolerance,
                rng=np.random.default_rng(0),
            )
        except ArpackError:
            pass
        else:
            order = found.argsort()[::-1].copy()
            return torch.from_numpy(found[order]), torch.from_numpy(basis[:, order].copy())
    values, vectors = torch.linalg.eigh(matrix)
    return values.flip(0)[:k], vectors.flip(1)[:, :k]


def extend_basis(basis: Tensor, directions: Tensor, how: Basis = "rank_revealing") -> Tensor:
    """The columns that make ``[U | new]`` an orthonormal basis of the span of ``[U | directions]``.

    ``rank_revealing``: directions already in the span add nothing, and U never exceeds d columns.
    ``qr``: plain QR as in the released code; one column per direction, arbitrary where it is repeated.
    """
    if how == "qr":
        q: Tensor = torch.linalg.qr(torch.cat([basis, directions], dim=1)).Q
        return q[:, basis.shape[1] :]
    new = basis.new_zeros(len(basis), 0)
    for direction in directions.unbind(1):
        span = torch.cat([basis, new], dim=1)
        if span.shape[1] == len(basis):
            break
        rest = direction - span @ (span.mT @ direction)
        if rest.norm() > NEW_DIRECTION * direction.norm():
            rest = rest - span @ (span.mT @ rest)
            new = torch.cat([new, (rest / rest.norm())[:, None]], dim=1)
    return new


class NullSpaceProjector:
    """Takes the protected part out of a gradient or a step: ``G ← G − (G U) diag(λ) Uᵀ``.

    ``λ = exp(−γ S)`` relaxes the protection of directions that keep interfering:
    ``r_p = |G u_p| / ‖G‖``, ``S ← β S + (1 − β) r``, S = 0 at the start of each task. γ = 0 is the hard
    projector. State is kept per row of G, so gates that share their input share one projector.
    """

    def __init__(self, basis: Tensor, *, beta: float = 0.99, gamma: float = 1.0) -> None:
        self.basis, self.beta, self.gamma = basis, beta, gamma
        self.interference: Tensor | None = None

    def observe(self, gradient: Tensor) -> None:
        """Updates the running interference S (rows, K) with a raw gradient (rows, d)."""
        norm = gradient.norm(dim=1, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
        ratio = (gradient @ self.basis).abs() / norm
        previous = torch.zeros_like(ratio) if self.interference is None else self.interference
        self.interference = self.beta * previous + (1 - self.beta) * ratio

    def project(self, step: Tensor) -> Tensor:
        """``step − (step U) diag(λ) Uᵀ`` for the λ of the gradients observed so far."""
        inside = step @ self.basis
        if self.gamma and self.interference is not None:
            inside = inside * torch.exp(-self.gamma * self.interference)
        return step - inside @ self.basis.mT
