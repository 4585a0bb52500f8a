"""What arrives: checkpoints read lazily, and their difference to the base."""

from mingle.weights.checkpoint import Canonical, Checkpoint, open_checkpoint, read_json
from mingle.weights.lazy_tensors import LazyTensors, Spec
from mingle.weights.task_vector import check_against, check_finite, task_vector

__all__ = [
    "Canonical",
    "Checkpoint",
    "LazyTensors",
    "Spec",
    "check_against",
    "check_finite",
    "open_checkpoint",
    "read_json",
    "task_vector",
]
