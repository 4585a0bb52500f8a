"""Iso-C (arXiv 2502.04959) in pairwise continual form: the sum of task vectors with a flat spectrum."""

import torch
from pydantic import Field
from torch import Tensor

from mingle.methods.base_linearwise import LinearOptions, LinearwiseMethod
from mingle.subspace import polar


class IsoOptions(LinearOptions):
    """``scale``: of the merged vector of a Linear's weight (the paper tunes it on validation data)."""

    scale: float = Field(1.0, gt=0)


class IsoC(LinearwiseMethod[IsoOptions]):
    """``θ ← θ0 + scale · σ̄ U Vᵀ`` for weights of Linears, ``U diag(S) Vᵀ`` the SVD of ``M + D``, σ̄ the
    mean of S.

    Choices: ``M = (θ − θ0) / scale``; at t = 1 the same formula with M = 0, so that even a single task
    vector is made isotropic; the mean is over all min(d_out, d_in) singular values, zeros included; other
    tensors are averaged pairwise (θ1 at t = 1).
    """

    options_type = IsoOptions

    def merge_linear(self, merged: Tensor, new: Tensor, t: int, generator: torch.Generator) -> Tensor:
        """The isotropic sum."""
        del t, generator
        isometry, singular = polar(merged / self.options.scale + new)
        return self.options.scale * singular.mean() * isometry


PLUGIN = IsoC
