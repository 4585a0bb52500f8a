"""The lower bound: the base alone, whatever arrives."""

from torch import nn

from mingle.methods.base_method import Arrival, Method, NoOptions, Progress, State, Step, silent


class Pretrained(Method[NoOptions]):
    """``θ = θ0`` after every task."""

    forgets = False

    def update(self, state: State, arrival: Arrival, progress: Progress = silent) -> State:
        """Remembers the task's head and nothing else."""
        del progress
        return state.append(Step(arrival.name, {}, arrival.head))

    def model(self, state: State, task: str | None = None) -> nn.Module:
        """The base."""
        del task
        return state.base.model()


PLUGIN = Pretrained
