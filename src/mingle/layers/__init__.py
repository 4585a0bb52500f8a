"""The merged layer: a frozen Linear plus gated low-rank experts."""

from mingle.layers.expert import Energy, LowRankExpert, build_expert
from mingle.layers.gate import Gate, GateReduction, PooledInput, SubspaceGate
from mingle.layers.mixture import MixtureLinear, is_linear, is_transposed
from mingle.layers.norm import MixtureNorm
from mingle.layers.placement import Placement, kept_wide
from mingle.layers.router import RoutedMLP, TokenRouter
from mingle.layers.surgery import LinearGroup, mixtures, unwrap, wrap, wrap_norms

__all__ = [
    "Energy",
    "Gate",
    "GateReduction",
    "LinearGroup",
    "LowRankExpert",
    "MixtureLinear",
    "MixtureNorm",
    "Placement",
    "PooledInput",
    "RoutedMLP",
    "SubspaceGate",
    "TokenRouter",
    "build_expert",
    "is_linear",
    "is_transposed",
    "kept_wide",
    "mixtures",
    "unwrap",
    "wrap",
    "wrap_norms",
]
