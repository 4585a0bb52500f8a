"""The router that is told the task: an upper bound for gates on mingle's experts. Not one merged model."""

import torch
from torch import nn

from mingle.layers import MixtureLinear
from mingle.methods._mingle_options import ExpertOptions
from mingle.methods.base_method import State
from mingle.methods.base_router import RouterMethod


class Oracle(RouterMethod[ExpertOptions]):
    """``g_i = 1`` for the expert of the named task and 0 for all others, in every layer.

    A later step does not change the experts of an earlier one, so nothing is forgotten.
    """

    options_type = ExpertOptions
    needs_task = True
    forgets = False

    def model(self, state: State, task: str | None = None) -> nn.Module:
        """The model of ``task``. Raises ConfigError when no task is named, UnknownNameError."""
        state.step(self._require_task(task))
        return super().model(state, task)

    def route(self, layer: MixtureLinear, state: State, task: str | None) -> None:
        """Constant gates: w = 0, c = 1 for the task and 0 elsewhere."""
        for step in state.steps:
            weight = layer.A.new_zeros(layer.A.shape[1])
            layer.gate.append(weight, torch.tensor(float(step.task == task)))


PLUGIN = Oracle
