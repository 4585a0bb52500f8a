"""The merged layer: a frozen Linear plus gated low-rank experts."""

from mingle.layers.closed_form import (
    ClosedFormGate,
    ClosedFormRouter,
    Decision,
    Reading,
    RouterFeatures,
    RouterForm,
    StemRouter,
    TrunkRouter,
    trunk_of,
)
from mingle.layers.expert import Energy, LowRankExpert, build_expert
from mingle.layers.gate import Gate, GateReduction, PooledInput, SubspaceGate
from mingle.layers.mixture import MixtureLinear, is_linear, is_transposed
from mingle.layers.norm import MixtureNorm
from mingle.layers.placement import Placement, kept_wide
from mingle.layers.router import RoutedMLP, TokenRouter
from mingle.layers.selection import Selection
from mingle.layers.surgery import LinearGroup, mixtures, select_experts, unwrap, wrap, wrap_norms

__all__ = [
    "ClosedFormGate",
    "ClosedFormRouter",
    "Decision",
    "Energy",
    "Gate",
    "GateReduction",
    "LinearGroup",
    "LowRankExpert",
    "MixtureLinear",
    "MixtureNorm",
    "Placement",
    "PooledInput",
    "Reading",
    "RoutedMLP",
    "RouterFeatures",
    "RouterForm",
    "Selection",
    "StemRouter",
    "SubspaceGate",
    "TokenRouter",
    "TrunkRouter",
    "build_expert",
    "is_linear",
    "is_transposed",
    "kept_wide",
    "mixtures",
    "select_experts",
    "trunk_of",
    "unwrap",
    "wrap",
    "wrap_norms",
]
