"""WEMoE (arXiv 2402.00433) with full task vectors as experts, in continual form."""

from torch import Tensor

from mingle.methods.base_method import Base
from mingle.methods.base_wemoe import PRESETS, WemoeMethod, WemoeOptions


class Wemoe(WemoeMethod[WemoeOptions]):
    """Every MLP becomes ``W0 + Σ_i g_i(x) (W_i − W0)``; the rest by task arithmetic."""

    options_type = WemoeOptions
    presets = PRESETS

    def expert(self, delta: Tensor, base: Base) -> dict[str, Tensor]:
        """The whole task vector."""
        del base
        return {"weight": delta}


PLUGIN = Wemoe
