"""DOP (dual orthogonal projection, NeurIPS 2025), data-free: stay close to both models where their
vectors act.
"""

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from mingle.methods.base_linearwise import LinearOptions, LinearwiseMethod, adam
from mingle.subspace import truncated_svd


class DopOptions(LinearOptions):
    """``steps`` and ``lr`` of Adam; ``energy``: share of ΣS that is kept; ``weight``, ``ema``: see the
    class.
    """

    steps: int = Field(200, ge=0)
    lr: float = Field(1e-4, gt=0)
    energy: float = Field(0.99999, gt=0, le=1)
    weight: float = Field(0.8, ge=0, le=1)
    ema: float = Field(0.999, ge=0, le=1)


class Dop(LinearwiseMethod[DopOptions]):
    """``min_W a ℓ_merged + (1 − a) ℓ_new``, ``ℓ_i = ‖diag(S) Uᵀ (W − W_i)‖² + ‖(W − W_i) V diag(S)‖²``,
    for Linears.

    U, S, V is the SVD of the task vector of W_i (M or D), cut after the fewest components whose S sum to
    ``energy`` of ΣS. Adam from ``(W_merged + W_new) / 2``. In every step γ minimises ``‖γ ∇ℓ_merged + (1
    − γ) ∇ℓ_new‖²`` over [0, 1] (MGDA; for two losses Frank-Wolfe ends in one step), then ``a ← ema · a +
    (1 − ema) γ``, from ``weight``, is what the step uses. Choices: MGDA reads the gradients as they are,
    one Linear at a time; at t = 1, and where only one of M and D is not zero, there is nothing to balance
    and W is W_merged + D; other tensors are averaged pairwise (θ1 at t = 1).
    """

    options_type = DopOptions

    def merge_linear(self, merged: Tensor, new: Tensor, t: int, generator: torch.Generator) -> Tensor:
        """Adam between the two models; θ0 drops out of ``W − W_i``."""
        del t, generator
        if not (merged.any() and new.any()):
            return merged + new
        anchors = [_Anchor.of(vector, self.options.energy) for vector in (merged, new)]
        weight = self.options.weight

        def gradient(current: Tensor) -> list[Tensor]:
            nonlocal weight
            slopes = [anchor.gradient(current) for anchor in anchors]
            weight = self.options.ema * weight + (1 - self.options.ema) * _least_norm(*slopes)
            return [weight * slopes[0] + (1 - weight) * slopes[1]]

        return adam([(merged + new) / 2], gradient, lr=self.options.lr, steps=self.options.steps)[0]


class _Anchor(NamedTuple):
    """A task vector and the factors of ``U diag(S²) Uᵀ`` and ``V diag(S²) Vᵀ``, whichever way is cheaper."""

    vector: Tensor
    left: list[Tensor]
    right: list[Tensor]

    @classmethod
    def of(cls, vector: Tensor, energy: float) -> "_Anchor":
        U, S, V = truncated_svd(vector, min(vector.shape))
        share = S.cumsum(0) / S.sum()
        kept = min(int((share < energy).sum()) + 1, len(S))
        U, S, V = U[:, :kept], S[:kept], V[:, :kept]
        left, right = [U * S.square(), U.mT], [V, (V * S.square()).mT]
        return cls(vector, _shortest(left), _shortest(right))

    def gradient(self, current: Tensor) -> Tensor:
        from_left = from_right = 2 * (current - self.vector)
        for factor in reversed(self.left):
            from_left = factor @ from_left
        for factor in self.right:
            from_right = from_right @ factor
        return from_left + from_right


def _shortest(factors: list[Tensor]) -> list[Tensor]:
    rank, width = sorted(factors[0].shape)
    return factors if 2 * rank < width else [factors[0] @ factors[1]]


def _least_norm(one: Tensor, two: Tensor) -> float:
    """The γ in [0, 1] with the smallest ``‖γ one + (1 − γ) two‖``; any, 0, where they are equal."""
    difference = two - one
    length = float(difference.square().sum())
    return min(max(float((difference * two).sum()) / length, 0.0), 1.0) if length else 0.0


PLUGIN = Dop
