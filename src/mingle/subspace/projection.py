"""Projection of a new task vector off the experts of earlier tasks.

Shapes: D (d_out, d_in) the new delta; P = B A the ungated sum of earlier experts with SVD U S Vᵀ; a its
effective rank. U_a, V_a are the first a singular vectors.
"""

from typing import Literal, get_args

from torch import Tensor

from mingle.errors import ConfigError, UnknownNameError
from mingle.subspace.low_rank import Factors, effective_rank, numerical_rank

Projection = Literal["block", "block+diagonal", "complement", "complement+diagonal", "none"]
PROJECTIONS: tuple[str, ...] = get_args(Projection)


def project_delta(
    delta: Tensor, previous: Factors | None, projection: Projection, rank: int | None = None
) -> tuple[Tensor, int]:
    """D' and the effective rank a that was used.

    - ``block``: ``D − U_a U_aᵀ D V_a V_aᵀ`` (what the released code computes).
    - ``complement``: ``(I − U_a U_aᵀ) D (I − V_a V_aᵀ)``.
    - ``…+diagonal``: also ``− Σ_{a<i≤rank P} (u_iᵀ D v_i) u_i v_iᵀ`` (OPCM, arXiv 2501.09522).
    - ``none`` or no previous expert: D itself, a = 0.

    ``rank`` replaces the computed effective rank, for exact replays. Raises UnknownNameError for a wrong
    name and ConfigError for a rank that P does not have.
    """
    if projection not in PROJECTIONS:
        raise UnknownNameError("projection", projection, PROJECTIONS)
    if previous is None or projection == "none":
        return delta, 0
    full_rank = numerical_rank(previous.S)
    a = effective_rank(previous.S) if rank is None else rank
    if not 0 <= a <= full_rank:
        raise ConfigError(
            f"effective rank: expected 0 to {full_rank}, the rank of the earlier experts, found {a}"
        )
    left, right = previous.U[:, :a], previous.V[:, :a]
    if projection.startswith("block"):
        projected = delta - left @ (left.mT @ delta @ right) @ right.mT
    else:
        projected = delta - left @ (left.mT @ delta)
        projected = projected - (projected @ right) @ right.mT
    if projection.endswith("+diagonal") and full_rank > a:
        u, v = previous.U[:, a:full_rank], previous.V[:, a:full_rank]
        projected = projected - (u * ((u.mT @ delta) * v.mT).sum(-1)) @ v.mT
    return projected, a
