"""The merged state on disk: an append-only history of steps that is whole at any instant."""

from importlib import import_module
from typing import TYPE_CHECKING

from mingle.state.history import History
from mingle.state.manifest import Manifest, StepEntry
from mingle.state.run_config import RunConfig
from mingle.state.run_folder import RunFolder

if TYPE_CHECKING:
    from mingle.state.merge_run import MergeRun as MergeRun

__all__ = ["History", "Manifest", "MergeRun", "RunConfig", "RunFolder", "StepEntry"]


def __getattr__(name: str) -> object:
    # Imported when first used: it is the one that needs torch.
    if name == "MergeRun":
        return import_module("mingle.state.merge_run").MergeRun
    raise AttributeError(f"module 'mingle.state' has no attribute {name!r}")
