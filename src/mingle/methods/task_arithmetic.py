"""Task arithmetic (arXiv 2212.04089) in its continual form."""

from pydantic import Field
from torch import Tensor

from mingle.config import Options
from mingle.methods.base_parameterwise import ParameterwiseMethod


class TaskArithmeticOptions(Options):
    """``scale``: λ; the paper's tables use 0.3 for 8 tasks, 0.1 for 14 and 20."""

    scale: float = Field(0.3, gt=0)


class TaskArithmetic(ParameterwiseMethod[TaskArithmeticOptions]):
    """``θ ← θ + λ (θt − θ0)``."""

    options_type = TaskArithmeticOptions

    def merge(self, base: Tensor, merged: Tensor, new: Tensor, t: int) -> Tensor:
        """One tensor after adding the scaled task vector."""
        del t
        return merged + self.options.scale * (new - base)


PLUGIN = TaskArithmetic
