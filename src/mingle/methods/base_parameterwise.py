"""Methods that are one formula for every tensor."""

from abc import abstractmethod
from typing import Generic

from torch import Tensor

from mingle.methods.base_method import OptionsT, Progress
from mingle.methods.base_streaming import Plan, Sources, StreamingMethod


class ParameterwiseMethod(StreamingMethod[OptionsT], Generic[OptionsT]):
    """``θ ← merge(θ0, θ, θt, t)`` for each tensor of the model."""

    @abstractmethod
    def merge(self, base: Tensor, merged: Tensor, new: Tensor, t: int) -> Tensor:
        """One tensor after task t (1, 2, …): θ0, θ after t − 1 tasks (θ0 at t = 1) and θt."""

    def plan(self, sources: Sources, progress: Progress) -> Plan:
        """The same formula for every tensor."""
        del progress
        return Plan(lambda _, versions: self.merge(*versions, sources.t))
