"""Running average of the weights (stochastic weight averaging in its continual form)."""

from torch import Tensor

from mingle.methods.base_method import NoOptions
from mingle.methods.base_parameterwise import ParameterwiseMethod


class Average(ParameterwiseMethod[NoOptions]):
    """``θ ← ((t − 1) θ + θt) / t``; the first task replaces the base."""

    def merge(self, base: Tensor, merged: Tensor, new: Tensor, t: int) -> Tensor:
        """One tensor of the running average."""
        del base
        return ((t - 1) * merged + new) / t


PLUGIN = Average
