"""The merged state on disk: an append-only history of steps that is whole at any instant."""

from mingle.state.manifest import Manifest, StepEntry
from mingle.state.merge_run import MergeRun
from mingle.state.run_config import RunConfig
from mingle.state.run_folder import RunFolder

__all__ = ["Manifest", "MergeRun", "RunConfig", "RunFolder", "StepEntry"]
