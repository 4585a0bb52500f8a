"""What arrives: checkpoints read lazily, and their difference to the base."""

from mingle.weights.checkpoint import Checkpoint, open_checkpoint
from mingle.weights.task_vector import check_against, task_vector

__all__ = ["Checkpoint", "check_against", "open_checkpoint", "task_vector"]
