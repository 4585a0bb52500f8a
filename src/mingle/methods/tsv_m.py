"""TSV-Merge (arXiv 2412.00081) in pairwise continual form: task singular vectors, decorrelated."""

import torch
from pydantic import Field
from torch import Tensor

from mingle.methods.base_linearwise import LinearOptions, LinearwiseMethod
from mingle.subspace import numerical_rank, polar, truncated_svd


class TsvOptions(LinearOptions):
    """``scale``: of the merged vector of a Linear's weight; 1 is the paper's."""

    scale: float = Field(1.0, gt=0)


class TsvM(LinearwiseMethod[TsvOptions]):
    """``θ ← θ0 + scale · Û diag(S) V̂ᵀ`` for weights of Linears.

    Of M and D each the leading ``⌊min(d_out, d_in) / 2⌋`` singular triplets; U and V are the concatenated
    singular vectors, Û and V̂ the matrices with orthonormal columns nearest to them (Procrustes). At t =
    1, D whole. Choices: ``M = (θ − θ0) / scale``; triplets of zero singular values are left out; other
    tensors are averaged pairwise (θ1 at t = 1).
    """

    options_type = TsvOptions

    def merge_linear(self, merged: Tensor, new: Tensor, t: int, generator: torch.Generator) -> Tensor:
        """Both vectors' leading singular triplets, orthogonalised together."""
        del generator
        if t == 1:
            return self.options.scale * new
        # At least one triplet: a Linear with one output still learns.
        share = max(min(new.shape) // 2, 1)
        parts = [truncated_svd(vector, share) for vector in (merged / self.options.scale, new)]
        ranks = [numerical_rank(part.S) for part in parts]
        U = torch.cat([part.U[:, :rank] for part, rank in zip(parts, ranks, strict=True)], dim=1)
        V = torch.cat([part.V[:, :rank] for part, rank in zip(parts, ranks, strict=True)], dim=1)
        S = torch.cat([part.S[:rank] for part, rank in zip(parts, ranks, strict=True)])
        return self.options.scale * polar(U)[0] * S @ polar(V)[0].mT


PLUGIN = TsvM
