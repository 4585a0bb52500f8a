"""What leaves: a run as files that other tools load, one file a form in ``targets/``."""

from mingle.export.card import model_card
from mingle.export.export import TARGETS, export_run
from mingle.export.folder import EXPORT_FILE
from mingle.export.merged_model import MergedModel, from_pretrained
from mingle.export.push import Push, push_run
from mingle.export.target import Target

__all__ = [
    "EXPORT_FILE",
    "TARGETS",
    "MergedModel",
    "Push",
    "Target",
    "export_run",
    "from_pretrained",
    "model_card",
    "push_run",
]
