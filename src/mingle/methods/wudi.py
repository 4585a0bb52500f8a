"""WUDI-Merging (arXiv 2503.08099) in pairwise continual form: least interference in the task vectors' row
spaces.
"""

from functools import reduce

import torch
from pydantic import Field
from torch import Tensor

from mingle.methods.base_linearwise import LinearOptions, LinearwiseMethod, adam


class WudiOptions(LinearOptions):
    """``steps`` and ``lr`` of Adam."""

    steps: int = Field(300, ge=0)
    lr: float = Field(1e-5, gt=0)


class Wudi(LinearwiseMethod[WudiOptions]):
    """``θ ← θ0 + τ``, τ near the minimum of ``Σ_i ‖(τ − τ_i) τ_iᵀ‖² / ‖τ_i‖²`` over τ_i in {M, D}, for
    Linears.

    Adam from ``Σ_i τ_i``. The gradient is ``2 Σ_i (τ − τ_i) G_i`` with ``G_i = τ_iᵀ τ_i / ‖τ_i‖²``.
    Choices: a zero τ_i has no term; other tensors are averaged pairwise (θ1 at t = 1, where τ = D is the
    minimum).
    """

    options_type = WudiOptions

    def merge_linear(self, merged: Tensor, new: Tensor, t: int, generator: torch.Generator) -> Tensor:
        """Adam on the interference."""
        del t, generator
        vectors = [vector for vector in (merged, new) if vector.any()]
        start = merged + new
        if len(vectors) < 2:
            return start
        grams = [vector.mT @ (vector / vector.square().sum()) for vector in vectors]
        curvature = reduce(torch.add, grams)
        target = reduce(torch.add, map(torch.matmul, vectors, grams))
        return adam(
            [start],
            lambda tau: [2 * (tau @ curvature - target)],
            lr=self.options.lr,
            steps=self.options.steps,
        )[0]


PLUGIN = Wudi
