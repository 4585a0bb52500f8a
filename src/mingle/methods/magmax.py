"""MagMax (arXiv 2407.06322): of all task vectors, the entry of the largest magnitude."""

import torch
from pydantic import Field
from torch import Tensor

from mingle.config import Options
from mingle.methods.base_parameterwise import ParameterwiseMethod


class MagmaxOptions(Options):
    """``scale``: λ."""

    scale: float = Field(0.5, gt=0)


class Magmax(ParameterwiseMethod[MagmaxOptions]):
    """``θ ← θ0 + λ m``, m per entry the one of ``(θ − θ0) / λ`` and Δt with the larger magnitude.

    Because the maximum is over one more vector at a time, this is the paper's maximum over all tasks.
    Choice: of two equal magnitudes the earlier stays.
    """

    options_type = MagmaxOptions

    def merge(self, base: Tensor, merged: Tensor, new: Tensor, t: int) -> Tensor:
        """One tensor after the comparison with the new task vector."""
        del t
        earlier, delta = (merged - base) / self.options.scale, new - base
        return base + self.options.scale * torch.where(delta.abs() > earlier.abs(), delta, earlier)


PLUGIN = Magmax
