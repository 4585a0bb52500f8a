"""Test-time continual model merging (MINGLE, arXiv 2505.11883).

The pipeline, one folder a stage, each importing from earlier ones only:

    weights      a checkpoint arrives: safetensors, read lazily, compared with the base
    subspace     its task vector is projected off what earlier tasks use, and factorised
    layers       the factors become a low-rank expert with an input-dependent gate in every Linear
    adaptation   the newest gate is adapted on a few unlabelled samples, in the null space of earlier tasks
    backbones    what a family of models has to say about itself
    methods      state in, state out: mingle, and what it is compared with
    suites       tasks, data and checkpoints to try it on
    state        the merged model on disk, as an append-only history
    export       the same in the forms of other tools, and to the hub
    evaluation   the accuracy matrix and what follows from it
    tracking     both of them in an experiment tracker; then benchmark, report and cli
"""

from importlib import import_module
from typing import TYPE_CHECKING

from mingle.errors import MingleError

if TYPE_CHECKING:
    from mingle.backbones import BACKBONES as BACKBONES
    from mingle.export import MergedModel as MergedModel
    from mingle.export import from_pretrained as from_pretrained
    from mingle.layers import Placement as Placement
    from mingle.methods import METHODS as METHODS
    from mingle.state import MergeRun as MergeRun
    from mingle.suites import SUITES as SUITES

# Imported when first used: `mingle --help` must not wait for torch.
_LAZY = {
    "BACKBONES": "mingle.backbones",
    "METHODS": "mingle.methods",
    "SUITES": "mingle.suites",
    "MergeRun": "mingle.state",
    "MergedModel": "mingle.export",
    "Placement": "mingle.layers",
    "from_pretrained": "mingle.export",
}

__version__ = "0.1.0"
__all__ = [
    "BACKBONES",
    "METHODS",
    "SUITES",
    "MergeRun",
    "MergedModel",
    "MingleError",
    "Placement",
    "__version__",
    "from_pretrained",
]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'mingle' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
