"""The upper bound: every task keeps its own fine-tuned model. Not one merged model."""

from torch import nn

from mingle.methods.base_method import Arrival, Method, NoOptions, Progress, State, Step, silent
from mingle.methods.base_streaming import Sources, lazily


class Individual(Method[NoOptions]):
    """``θ = θ_i`` for task i, which has to be named."""

    needs_task = True
    forgets = False

    def update(self, state: State, arrival: Arrival, progress: Progress = silent) -> State:
        """Stores the whole checkpoint."""
        del progress
        sources = Sources(state, arrival)
        weights = lazily(sources, sources.new, state.base.dtype)
        return state.append(Step(arrival.name, {"weights": weights}, arrival.head))

    def model(self, state: State, task: str | None = None) -> nn.Module:
        """The model of ``task``. Raises ConfigError when no task is named."""
        return state.base.model(state.step(self._require_task(task)).tensors["weights"])


PLUGIN = Individual
