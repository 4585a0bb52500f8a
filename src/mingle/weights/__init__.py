"""What arrives: checkpoints read lazily, and their difference to the base."""

from mingle.weights.adapter import Adapter
from mingle.weights.checkpoint import Canonical, Checkpoint, Entry
from mingle.weights.conversion import Conversion, convert
from mingle.weights.lazy_tensors import LazyTensors, Spec
from mingle.weights.opening import open_checkpoint
from mingle.weights.source import is_hub_id, local_path, read_json
from mingle.weights.task_vector import check_against, check_finite, task_vector

__all__ = [
    "Adapter",
    "Canonical",
    "Checkpoint",
    "Conversion",
    "Entry",
    "LazyTensors",
    "Spec",
    "check_against",
    "check_finite",
    "convert",
    "is_hub_id",
    "local_path",
    "open_checkpoint",
    "read_json",
    "task_vector",
]
