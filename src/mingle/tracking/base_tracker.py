"""What is logged of a run, and the interface of the tools that it is logged to."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from mingle.errors import ConfigError
from mingle.evaluation import Evaluation
from mingle.registry import Registry
from mingle.state import MergeRun


class Tracker(ABC):
    """A log of one run under a name. Opening it again continues it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        folder.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def settings(self, values: Mapping[str, Any]) -> None:
        """Logs what the run was started with; the same values again change nothing."""

    @abstractmethod
    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Logs numbers by name at a step, counted from 0."""

    @abstractmethod
    def close(self) -> None:
        """Writes what is left."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


TRACKERS: Registry[type[Tracker]] = Registry("tracker", "mingle.tracking")


def open_tracker(target: str, run: MergeRun) -> Tracker:
    """The tracker ``kind:folder``, such as ``tensorboard:logs``, for a run.

    The log goes by the name of the run's folder and a hash of where that is. Raises UnknownNameError,
    ConfigError where no folder is named or the tracker's extra is not installed.
    """
    kind, _, folder = target.partition(":")
    if not folder:
        raise ConfigError(f"tracker: expected kind:folder, such as tensorboard:logs, found {target!r}")
    tracker, place = TRACKERS.get(kind), run.path.resolve()
    digest = hashlib.sha256(str(place).encode()).hexdigest()
    name = re.sub(r"[^\w.-]", "_", place.name) + f"-{digest[:8]}"
    try:
        return tracker(Path(folder), name)
    except ImportError as error:
        raise ConfigError(f"tracker {kind!r} needs its extra: pip install 'mingle-merge[{kind}]'") from error


def track_step(tracker: Tracker, run: MergeRun, task: str) -> None:
    """Logs the step of a task: seconds, energy kept, and the loss of every adaptation step.

    The step number is the task's position; that of a loss is its iteration. Raises ConfigError where the
    tracker fails: the step is merged and stays.
    """
    try:
        _log_step(tracker, run, task)
    except Exception as error:  # whatever a tracker's library raises
        reason = " ".join(str(error).split())
        raise ConfigError(f"task {task!r} is merged and stays, but was not logged: {reason}") from error


def _log_step(tracker: Tracker, run: MergeRun, task: str) -> None:
    header, info = run.header, run.info(task)
    report = info["report"]
    tracker.settings(
        {key: header[key] for key in ("method", "preset", "backbone", "seed")} | dict(header["settings"])
    )
    energy = {f"energy/{part}": share for part, share in report.get("energy", {}).items()}
    tracker.scalars({"seconds": info["seconds"], **energy}, run.tasks.index(task))
    for iteration, loss in enumerate(report.get("losses", ())):
        tracker.scalars({f"loss/{task}": loss}, iteration)


def track_evaluation(tracker: Tracker, evaluation: Evaluation) -> None:
    """Logs the accuracy of every task after every step and their mean; the final metrics at the last."""
    for t, row in enumerate(evaluation.matrix):
        accuracies = {f"accuracy/{task}": a for task, a in zip(evaluation.tasks, row, strict=False)}
        tracker.scalars({**accuracies, "accuracy/mean": sum(row) / len(row)}, t)
    metrics = {f"metrics/{name}": value for name, value in evaluation.metrics.items() if value is not None}
    tracker.scalars(metrics, len(evaluation.matrix) - 1)
