"""WEMoE (arXiv 2402.00433) with low-rank experts, in continual form."""

from typing import Any

from pydantic import Field
from torch import Tensor

from mingle.layers import build_expert
from mingle.methods._mingle_resolve import width_rule
from mingle.methods.base_method import Base
from mingle.methods.base_wemoe import PRESETS, WemoeMethod, WemoeOptions


class LoraWemoeOptions(WemoeOptions):
    """``rank`` left out follows the width as mingle's does: 64 at d ≥ 768. The same for every task."""

    rank: int | None = Field(None, ge=1)


class LoraWemoe(WemoeMethod[LoraWemoeOptions]):
    """Every MLP becomes ``W0 + Σ_i g_i(x) B_i A_i``, B_i A_i the truncated SVD of ``W_i − W0``.

    A bias has no rank to cut: its delta is kept whole. The rest by task arithmetic.
    """

    options_type = LoraWemoeOptions
    presets = PRESETS

    def settings(self, base: Base) -> dict[str, Any]:
        """Every option with the value that is used."""
        return super().settings(base) | {"rank": self.options.rank or width_rule(base)}

    def expert(self, delta: Tensor, base: Base) -> dict[str, Tensor]:
        """The factors of its best approximation of rank r."""
        rank = self.options.rank or width_rule(base)
        expert, _ = build_expert(delta, [], rank=rank, projection="none")
        return {"A": expert.A, "B": expert.B}


PLUGIN = LoraWemoe
