"""The accuracy matrix, and everything that follows from it."""

from mingle.evaluation.corruptions import CORRUPTIONS, corrupt
from mingle.evaluation.gates import GateActivations, gate_activations
from mingle.evaluation.matrix import ScoredTask, accuracy, accuracy_matrix, mixed_accuracy, scored_tasks
from mingle.evaluation.metrics import (
    average_accuracy,
    backward_transfer,
    forward_transfer,
    normalised_accuracy,
)
from mingle.evaluation.results import Evaluation, evaluate_run, individual_accuracies, relative_metrics
from mingle.evaluation.seed_variations import VARIATIONS, Elsewhere, vary

__all__ = [
    "CORRUPTIONS",
    "VARIATIONS",
    "Elsewhere",
    "Evaluation",
    "GateActivations",
    "ScoredTask",
    "accuracy",
    "accuracy_matrix",
    "average_accuracy",
    "backward_transfer",
    "corrupt",
    "evaluate_run",
    "forward_transfer",
    "gate_activations",
    "individual_accuracies",
    "mixed_accuracy",
    "normalised_accuracy",
    "relative_metrics",
    "scored_tasks",
    "vary",
]
