"""NUFILT (arXiv 2509.21413), data-free: a new task vector filtered by the null space of the merged one."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from mingle.methods.base_linearwise import LinearOptions, LinearwiseMethod, adam
from mingle.methods.base_streaming import Versions
from mingle.subspace import truncated_svd


class NufiltOptions(LinearOptions):
    """``previous_rank``, at most ``share`` of d_in, and ``task_rank``: columns of V_p and V_t; ``rank``:
    of B A.

    At width 768 the default share is the paper's rank; a small model would have no direction left to
    learn in.
    """

    sites: str = "light+out"
    previous_rank: int = Field(128, ge=1)
    share: float = Field(1 / 6, gt=0, le=1)
    task_rank: int = Field(8, ge=1)
    rank: int = Field(64, ge=1)
    steps: int = Field(50, ge=0)
    lr: float = Field(1e-3, gt=0)


class Nufilt(LinearwiseMethod[NufiltOptions]):
    """``W ← W + D (P + B A)`` for attention and fc1 Linears, ``P = I − V_p V_pᵀ``.

    V_p are the leading right singular vectors of M, V_t those of D. B (d_in, r), from 0, and A (r, d_in),
    from N(0, 0.02²), minimise ``‖D V_t − (M + D P + D B A) V_t‖² + ‖M V_p − (M + D P + D B A) V_p‖²`` by
    Adam. At t = 1 there is nothing to filter: P = I, B A = 0. Choices: singular vectors of zero singular
    values are not used; A is drawn from the run's seed and the tensor's name; every other tensor stays
    the base's.
    """

    options_type = NufiltOptions
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}, "paper": {"share": 1.0}}

    def merge_linear(self, merged: Tensor, new: Tensor, t: int, generator: torch.Generator) -> Tensor:
        """The filtered task vector on top of what is merged."""
        del t
        if not merged.any():
            return new
        options, width = self.options, new.shape[1]
        protected = max(min(options.previous_rank, int(options.share * width)), 1)
        previous = truncated_svd(merged, protected).V
        task = truncated_svd(new, options.task_rank).V
        V = torch.cat([task, previous], dim=1)
        kept = merged + new - (new @ previous) @ previous.mT
        missing = torch.cat([new @ task, merged @ previous], dim=1) - kept @ V

        def gradient(B: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
            seen = A @ V
            slope = 2 * new.mT @ (new @ (B @ seen) - missing)
            return slope @ seen.mT, (B.mT @ slope) @ V.mT

        start = 0.02 * torch.randn(options.rank, width, generator=generator, dtype=new.dtype)
        B, A = adam([new.new_zeros(width, options.rank), start], gradient, lr=options.lr, steps=options.steps)
        return kept + new @ B @ A

    def merge_other(self, versions: Versions, t: int) -> Tensor:
        """The base's tensor."""
        del t
        return versions.base


PLUGIN = Nufilt
