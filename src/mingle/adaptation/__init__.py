"""Adapting the newest gate on a few unlabelled samples."""

from mingle.adaptation.closed_form import RouterStatistics, RouterSystem, router_statistics
from mingle.adaptation.features import second_moments, watch_inputs
from mingle.adaptation.loop import GateGroup, adapt, minimise
from mingle.adaptation.objectives import OBJECTIVES, kl_divergence, prediction_entropy, soft_cross_entropy
from mingle.adaptation.seeds import SeedSelection, draw_batches, select_seeds

__all__ = [
    "OBJECTIVES",
    "GateGroup",
    "RouterStatistics",
    "RouterSystem",
    "SeedSelection",
    "adapt",
    "draw_batches",
    "kl_divergence",
    "minimise",
    "prediction_entropy",
    "router_statistics",
    "second_moments",
    "select_seeds",
    "soft_cross_entropy",
    "watch_inputs",
]
