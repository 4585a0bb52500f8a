"""One task's low-rank expert of one Linear.

Shapes: D (d_out, d_in) task vector of the weight; B (d_out, r), A (r, d_in); bias (d_out,).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.linalg import vector_norm

from mingle.errors import DivergedError
from mingle.subspace import WIDE, Factors, Projection, project_delta, svd_of_factors, truncated_svd


@dataclass(frozen=True)
class LowRankExpert:
    """``Δ(x) = B (A x) [+ bias]``, added to the layer's output times the gate of its task.

    ``bias`` is the delta of the layer's bias, kept only with ``vectors="gated"``.
    """

    A: Tensor
    B: Tensor
    bias: Tensor | None = None

    def rounded(self, dtype: torch.dtype, where: str = "expert") -> Self:
        """A and B in another dtype. Raises DivergedError where it does not hold one of them to 2⁻⁸."""
        for name, factor in (("A", self.A), ("B", self.B)):
            exact = factor.double()
            lost, norm = float((factor.to(dtype).double() - exact).norm()), float(exact.norm())
            if not lost <= norm / 2**8:
                raise DivergedError(
                    f"{where}: {dtype} does not hold the expert's {name}, with values up to "
                    f"{float(exact.abs().max()):.3g}; store it in another precision (bfloat16, exact)"
                )
        return replace(self, A=self.A.to(dtype), B=self.B.to(dtype))


@dataclass(frozen=True)
class Energy:
    """Where ``‖θt − θ0‖²`` of one tensor went: squared Frobenius norms that add up to ``total``.

    ``projection`` is what the projection took away and ``rank`` what truncation to rank r took away.
    The two parts are orthogonal to what is kept, up to rounding, for ``block`` and ``complement``.
    """

    total: float
    kept: float
    projection: float
    rank: float
    effective_rank: int


def build_expert(
    delta: Tensor,
    earlier: Sequence[LowRankExpert],
    *,
    rank: int,
    projection: Projection,
    effective_rank: int | None = None,
) -> tuple[LowRankExpert, Energy]:
    """The expert of a task vector: project D off ``P = Σ B_i A_i``, then the rank-r truncated SVD.

    ``D' ≈ Ũ Σ̃ Ṽᵀ``, ``B = Ũ``, ``A = Σ̃ Ṽᵀ`` (arXiv 2505.11883). Computed in float64 but for
    wide float32 matrices (`truncated_svd`), returned in the dtype of ``delta``. ``effective_rank`` replaces
    the computed one, for exact replays. Raises DivergedError where that dtype cannot hold the expert.
    """
    # Wide float32 matrices are exact enough as they are, see truncated_svd.
    wide = delta.dtype == torch.float32 and min(delta.shape) >= WIDE
    exact = delta if wide else delta.double()
    previous = None
    if earlier and projection != "none":
        stacked_b = torch.cat([e.B.double() for e in earlier], dim=1)
        stacked_a = torch.cat([e.A.double() for e in earlier], dim=0)
        found = svd_of_factors(stacked_b, stacked_a)
        previous = Factors(found.U.to(exact), found.S, found.V.to(exact))
    projected, used = project_delta(exact, previous, projection, effective_rank)
    U, S, V = truncated_svd(projected, rank)
    total, left, kept = (float(vector_norm(t, dtype=torch.float64)) ** 2 for t in (exact, projected, S))
    energy = Energy(
        total=total,
        kept=kept,
        projection=max(total - left, 0.0),
        rank=max(left - kept, 0.0),
        effective_rank=used,
    )
    expert = LowRankExpert(A=(S[:, None] * V.mT).to(delta.dtype), B=U.to(delta.dtype).contiguous())
    if not torch.isfinite(expert.A).all():
        raise DivergedError(
            f"expert: a task vector of norm {total**0.5:.3g} leaves the range of {delta.dtype}; "
            "is it a checkpoint of this base?"
        )
    return expert, energy
