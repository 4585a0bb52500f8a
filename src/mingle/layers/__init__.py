"""The merged layer: a frozen Linear plus gated low-rank experts."""

from mingle.layers.expert import Energy, LowRankExpert, build_expert
from mingle.layers.gate import Gate, GateReduction, PooledInput
from mingle.layers.mixture import MixtureLinear
from mingle.layers.surgery import LinearGroup, mixtures, unwrap, wrap

__all__ = [
    "Energy",
    "Gate",
    "GateReduction",
    "LinearGroup",
    "LowRankExpert",
    "MixtureLinear",
    "PooledInput",
    "build_expert",
    "mixtures",
    "unwrap",
    "wrap",
]
