"""Low-rank factorisations without a full SVD.

Shapes: D (d_out, d_in); B (d_out, R) and A (R, d_in) are stacked expert factors; r the rank kept.
Every function works in float64 inside and returns the dtype of its input; only where a float32 matrix is wide
is the first guess of its leading directions made in float32.
"""

from functools import cache
from typing import NamedTuple

import torch
from scipy.linalg import eigh
from threadpoolctl import ThreadpoolController
from torch import Tensor

WIDE = 512
"""From this width on the leading directions of a float32 matrix are first sought in float32."""

SPARE = 16
"""Directions sought beyond those that are kept, so that the last ones kept are as good as the first."""

INDEPENDENT = 1e-3
"""Smallest pivot, as a share of the largest, at which squaring the condition number of B is harmless."""


class Factors(NamedTuple):
    """A singular value decomposition ``U · diag(S) · Vᵀ`` with S in descending order.

    ``U`` (d_out, n), ``S`` (n,), ``V`` (d_in, n).
    """

    U: Tensor
    S: Tensor
    V: Tensor


def truncated_svd(matrix: Tensor, rank: int) -> Factors:
    """Best rank-r approximation of a matrix (Eckart-Young), ``D ≈ U diag(S) Vᵀ``.

    Solved as the eigenproblem of the smaller Gram matrix in float64 (cheaper than an SVD of D, and for
    float32 data as accurate). Always returns ``min(rank, d_out, d_in)`` triplets: beyond the rank of D
    the singular values are zero and the columns of U or V are zero too.

    A float32 matrix of ``WIDE`` and more, of which at most a quarter is kept, is not solved but in float32:
    the eigenvectors only say where to look, and the SVD is that of D inside the span of their images
    (Halko et al. 2011); the product is within 1e-5 of what float64 gives.
    """
    if matrix.shape[0] < matrix.shape[1]:
        flipped = truncated_svd(matrix.mT, rank)
        return Factors(flipped.V, flipped.S, flipped.U)
    keep = min(rank, matrix.shape[1])
    if matrix.dtype == torch.float32 and matrix.shape[1] >= max(WIDE, 4 * keep):
        return _wide_svd(matrix, keep)
    exact = matrix.double()
    scale = exact.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    exact = exact / scale
    right = _gram_directions(exact, keep)
    image = exact @ right
    singular = image.norm(dim=0)
    real = singular > singular.amax().clamp_min(1e-300) * _tolerance(exact)
    left = torch.where(real, image / singular.clamp_min(1e-300), 0.0)
    singular = torch.where(real, singular, 0.0) * scale
    right = torch.where(real, right, 0.0)
    return Factors(left.to(matrix.dtype), singular.to(matrix.dtype), right.to(matrix.dtype))


def _wide_svd(matrix: Tensor, keep: int) -> Factors:
    # A power of two scales without rounding.
    scale = matrix.abs().amax().clamp_min(torch.finfo(matrix.dtype).tiny).log2().floor().exp2()
    scaled = matrix / scale
    left = torch.linalg.qr(scaled @ _gram_directions(scaled, keep + SPARE)).Q
    inside = truncated_svd(left.mT @ scaled, keep)
    return Factors(left @ inside.U, inside.S * scale, inside.V)


def _gram_directions(matrix: Tensor, keep: int) -> Tensor:
    """The leading right singular vectors: eigenvectors of ``MᵀM``, largest first."""
    width = matrix.shape[1]
    if width >= max(WIDE, 2 * keep) and matrix.device.type == "cpu":
        # LAPACK can solve for those alone, torch does not offer it.
        leading = (width - keep, width - 1)
        with _linear_algebra().limit(limits=1, user_api="blas"):
            found = eigh((matrix.mT @ matrix).numpy(), subset_by_index=leading, overwrite_a=True)
        vectors = torch.from_numpy(found[1])
    else:
        vectors = torch.linalg.eigh(matrix.mT @ matrix).eigenvectors
    return vectors.flip(-1)[:, :keep]


@cache
def _linear_algebra() -> ThreadpoolController:
    # scipy has threads of its own: a second one gains nothing here, and spins beside torch's when it is done.
    return ThreadpoolController()


def svd_of_factors(B: Tensor, A: Tensor) -> Factors:
    """Singular value decomposition of ``P = B A`` from its factors.

    ``B = Q_b R_b``, ``Aᵀ = Q_a R_a``; the SVD of the small ``R_b R_aᵀ`` rotated by the two Q.
    Returns ``min(R, d_out, d_in)`` triplets; the ones past ``numerical_rank(S)`` span nothing.

    Where P is ``WIDE`` or more: ``B = Q Lᵀ`` with ``BᵀB = L Lᵀ`` (Cholesky), and `truncated_svd` of ``Lᵀ A``;
    of P itself when there are as many ranks as P has rows or columns. Singular values below 1e-6 of the
    largest are then zero.
    """
    left, right, narrow = B.double(), A.double(), min(B.shape[0], A.shape[1])
    found = None
    if narrow >= WIDE:
        found = _svd_by_cholesky(left, right) if len(A) < narrow else truncated_svd(left @ right, narrow)
    if found is None:
        found = _svd_by_qr(left, right)
    return Factors(*(part.to(B.dtype) for part in found))


def _svd_by_qr(B: Tensor, A: Tensor) -> Factors:
    q_left, r_left = torch.linalg.qr(B)
    q_right, r_right = torch.linalg.qr(A.mT)
    left, singular, right_t = torch.linalg.svd(r_left @ r_right.mT, full_matrices=False)
    return Factors(q_left @ left, singular, q_right @ right_t.mT)


def _svd_by_cholesky(B: Tensor, A: Tensor) -> Factors | None:
    """None where the columns of B are too nearly dependent, as those of a task that was added twice."""
    lower, failed = torch.linalg.cholesky_ex(B.mT @ B)
    pivots = lower.diagonal()
    if failed or pivots.min() < INDEPENDENT * pivots.max():
        return None
    inside = truncated_svd(lower.mT @ A, len(A))
    turned = torch.linalg.solve_triangular(lower.mT, inside.U, upper=True)
    return Factors(B @ turned, inside.S, inside.V)


def polar(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """``U Vᵀ`` of ``M = U diag(S) Vᵀ``, and S: the isometry nearest to M (orthogonal Procrustes).

    Directions that M does not have (singular values that are rounding noise) are left out, so that the
    result depends on M alone; of the zero matrix it is zero.
    """
    left, singular, right_t = torch.linalg.svd(matrix.double(), full_matrices=False)
    rank = numerical_rank(singular)
    return (left[:, :rank] @ right_t[:rank]).to(matrix.dtype), singular.to(matrix.dtype)


def numerical_rank(singular_values: Tensor) -> int:
    """How many singular values are above the rounding noise of the largest one."""
    if singular_values.numel() == 0 or not singular_values.any():
        return 0
    cutoff = (
        singular_values.amax() * max(singular_values.numel(), 64) * torch.finfo(singular_values.dtype).eps
    )
    return int((singular_values > cutoff).sum())


def effective_rank(singular_values: Tensor) -> int:
    """``⌊exp(H(S / ΣS))⌋``, H the Shannon entropy with 0·log 0 = 0 (Roy & Vetterli 2007).

    Values below the rounding noise of the largest one are taken as zero (they would add entropy), and
    the floor forgives 1e-9, so that n equal values give n. The zero matrix has effective rank 0.
    """
    rank = numerical_rank(singular_values)
    if rank == 0:
        return 0
    share = singular_values.double().sort(descending=True).values[:rank]
    share = share / share.sum()
    entropy = torch.special.entr(share).sum()
    return int(entropy.exp() + 1e-9)


def _tolerance(matrix: Tensor) -> float:
    # A Gram matrix squares the condition number: singular values below sqrt(eps) of the largest are noise.
    return float((max(matrix.shape) * torch.finfo(matrix.dtype).eps) ** 0.5)
