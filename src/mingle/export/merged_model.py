"""The merged model out of an export, in one line."""

from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from mingle.backbones import Samples
from mingle.errors import ExportError
from mingle.export.folder import check_files
from mingle.layers import Placement
from mingle.state import MergeRun
from mingle.state.manifest import MANIFEST_FILE
from mingle.weights import local_path


class MergedModel:
    """A merged model, ready to use: ``model``, ``tasks``, ``classes(task)``, ``predict(samples, task)``.

    ``run`` is the run behind it, with its whole history.
    """

    def __init__(self, run: MergeRun, placement: Placement | None = None) -> None:
        self.run, self.placement = run, placement

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the merged tasks, oldest first."""
        return self.run.tasks

    @cached_property
    def model(self) -> nn.Module:
        """The merged model, frozen, in eval mode; move it to a device and `predict` follows.

        Raises ConfigError for methods that have one model per task.
        """
        return self.run.model(placement=self.placement)

    def classes(self, task: str) -> tuple[str, ...]:
        """Class names of a task; none where it has no head. Raises UnknownNameError."""
        head = self.run.head(task)
        return head.classes if head else ()

    def predict(self, samples: str | Path | Samples, task: str) -> tuple[Tensor, tuple[str, ...]]:
        """Class probabilities (N, C) of images or texts under a task's head, and its class names.

        Raises UnknownNameError, CheckpointError for a task without a head, SeedsError.
        """
        model = None if self.run.method.needs_task else self.model
        return self.run.predict(samples, task, model=model)


def from_pretrained(
    source: str | Path, *, base: str | Path | None = None, placement: Placement | None = None
) -> MergedModel:
    """Opens what ``mingle export --to hf`` or ``mingle push`` wrote: a folder, or a hub id.

    ``base``: where the base is, if the folder does not hold it and it has moved. Every file is compared with
    its hash first, and the base with its fingerprint. ``placement``: dtype and devices of the model.

    Raises ExportError for anything else, RunDamagedError for a file that is missing or altered,
    CheckpointError for a base that is not found or is another one.
    """
    folder = local_path(source)
    content = check_files(folder)
    if not (folder / MANIFEST_FILE).exists():
        raise ExportError(
            f"{folder}: an export to {content['target']!r}, which other libraries open; "
            "mingle opens what mingle export --to hf wrote"
        )
    run = MergeRun.open(folder, base=base)
    run.base  # noqa: B018 – read and compared with its fingerprint now, not at the first use
    return MergedModel(run, placement)
