"""Low-rank factorisations without a full SVD.

Shapes: D (d_out, d_in); B (d_out, R) and A (R, d_in) are stacked expert factors; r the rank kept.
Every function works in float64 inside and returns the dtype of its input.
"""

from typing import NamedTuple

import torch
from torch import Tensor


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
    """
    if matrix.shape[0] < matrix.shape[1]:
        flipped = truncated_svd(matrix.mT, rank)
        return Factors(flipped.V, flipped.S, flipped.U)
    exact = matrix.double()
    keep = min(rank, exact.shape[1])
    scale = exact.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    exact = exact / scale
    right = torch.linalg.eigh(exact.mT @ exact).eigenvectors.flip(-1)[:, :keep]
    image = exact @ right
    singular = image.norm(dim=0)
    real = singular > singular.amax().clamp_min(1e-300) * _tolerance(exact)
    left = torch.where(real, image / singular.clamp_min(1e-300), 0.0)
    singular = torch.where(real, singular, 0.0) * scale
    right = torch.where(real, right, 0.0)
    return Factors(left.to(matrix.dtype), singular.to(matrix.dtype), right.to(matrix.dtype))


def svd_of_factors(B: Tensor, A: Tensor) -> Factors:
    """Exact singular value decomposition of ``P = B A`` from its factors, never forming P.

    ``B = Q_b R_b``, ``Aᵀ = Q_a R_a``; the SVD of the small ``R_b R_aᵀ`` rotated by the two Q.
    Returns ``min(R, d_out, d_in)`` triplets; the ones past ``numerical_rank(S)`` span nothing.
    """
    q_left, r_left = torch.linalg.qr(B.double())
    q_right, r_right = torch.linalg.qr(A.mT.double())
    left, singular, right_t = torch.linalg.svd(r_left @ r_right.mT, full_matrices=False)
    return Factors((q_left @ left).to(B.dtype), singular.to(B.dtype), (q_right @ right_t.mT).to(B.dtype))


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
