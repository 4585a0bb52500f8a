"""One router for all Linears of an MLP: weight-ensembling mixtures of experts (arXiv 2402.00433).

Shapes: N samples; T tasks; x (N, …, d) the MLP's input, its middle axes are tokens; h the router's width.
"""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import linear, relu

from mingle.layers.gate import Gate, PooledInput
from mingle.layers.mixture import MixtureLinear


class TokenRouter(nn.Module):
    """``g(x) = W2 · mean over tokens of relu(W1 x + b1) + b2``: a gate per task, without a softmax.

    The last layer is linear, so that the mean may be taken before it.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("hidden_weight", "hidden_bias", "weight", "bias")
    hidden_weight: Tensor
    hidden_bias: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """``hidden_weight`` (h, d), ``hidden_bias`` (h,), ``weight`` (T, h), ``bias`` (T,)."""
        super().__init__()
        for name in self.NAMES:
            self.register_parameter(name, nn.Parameter(tensors[name].clone()))

    def forward(self, x: Tensor, pool: PooledInput) -> Tensor:
        """(N, …, d) -> gates (N, T); ``pool`` knows which tokens count."""
        wide = x.to(self.hidden_weight.dtype)
        pooled: Tensor = pool(relu(linear(wide, self.hidden_weight, self.hidden_bias)), "router")
        return linear(pooled, self.weight, self.bias)


class _Given:
    """Gates on their way to who uses them: no attribute of a module, which tracing must not assign."""

    gates: Tensor | None = None


class SharedGate(Gate):
    """Gates (N, T) that somebody else computed, the same for every Linear that holds this gate."""

    def __init__(self) -> None:
        super().__init__(0)
        self._given = _Given()
        # A part of many layers, which may be on many devices.
        del self.weight, self.bias

    @property
    def values(self) -> Tensor | None:
        """The gates of the current forward pass, before any reduction."""
        return self._given.gates

    @values.setter
    def values(self, gates: Tensor | None) -> None:
        self._given.gates = gates

    def of(self, x: Tensor, pool: PooledInput) -> Tensor:
        """The gates of the current forward pass, whatever the layer's own input is. Raises RuntimeError."""
        del pool
        return spread(self.forward(x), x).to(x.device)

    def forward(self, pooled: Tensor) -> Tensor:
        """The gates of the current forward pass."""
        del pooled
        if self.values is None:
            raise RuntimeError("this Linear runs only inside the module whose router computes its gates")
        return self.reduced(self.values)

    def __getstate__(self) -> dict[str, object]:
        # A copy of the model must not hold a graph.
        return {**self.__dict__, "_given": _Given()}


def spread(gates: Tensor, x: Tensor) -> Tensor:
    """The gates of samples (N, T) for the rows of x, where a sample may have several, one after the other.

    So it has where it is cut (windows of a picture), and where a text is written in several ways (beams).
    Raises RuntimeError for rows that cannot be of these samples.
    """
    if x.dim() < 2 or len(x) <= len(gates):
        return gates
    if len(x) % len(gates):
        raise RuntimeError(
            f"gates of {len(gates)} samples for {len(x)}: what the router reads has to run on the same "
            "samples right before"
        )
    return gates.repeat_interleave(len(x) // len(gates), dim=0)


class RoutedMLP(nn.Module):
    """An MLP whose Linears are mixtures under one router of the MLP's input."""

    def __init__(self, mlp: nn.Module, layers: list[MixtureLinear], router: TokenRouter) -> None:
        """``layers``: the MixtureLinears of ``mlp``, first the one that reads the MLP's input."""
        super().__init__()
        self.mlp, self.router, self.pool = mlp, router, layers[0].pool
        self.gate = SharedGate()
        for layer in layers:
            layer.gate = self.gate

    def forward(self, x: Tensor) -> Tensor:
        """(N, …, d) -> (N, …, d)."""
        self.gate.values = self.router(x, self.pool)
        try:
            y: Tensor = self.mlp(x)
        finally:
            self.gate.values = None
        return y
