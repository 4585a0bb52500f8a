"""A suite: a base, checkpoints fine-tuned from it, and data to adapt and to score them on."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from mingle.backbones import Backbone, Head, Samples
from mingle.errors import ConfigError, UnknownNameError
from mingle.registry import Registry
from mingle.weights import Checkpoint


class Suite(ABC):
    """Tasks that were fine-tuned from one base. Labels are indices into the classes of the task's head."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the suite."""

    @property
    @abstractmethod
    def backbone(self) -> str:
        """Name of the backbone its models belong to."""

    @property
    @abstractmethod
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks in the suite's own order."""

    @property
    @abstractmethod
    def base(self) -> str | Path:
        """The pretrained model: folder or hub id."""

    @abstractmethod
    def checkpoint(self, task: str) -> str | Path:
        """A task's fine-tuned model: folder or hub id. Raises UnknownNameError."""

    def head(self, task: str) -> Head | None:
        """The task's classifier; None for the one beside the checkpoint. Raises UnknownNameError."""
        self.require(task)
        return None

    @abstractmethod
    def test(self, task: str) -> tuple[Samples, Tensor]:
        """Scored samples and their labels (N,). Raises UnknownNameError, ConfigError."""

    @abstractmethod
    def seeds(self, task: str) -> Samples:
        """Unlabelled samples that are not scored. Raises UnknownNameError, ConfigError."""

    def train(self, task: str) -> tuple[Samples, Tensor]:
        """Training samples and their labels (N,). Raises ConfigError where the suite has none."""
        self.require(task)
        raise ConfigError(f"suite {self.name!r}: no training data of task {task!r}")

    @property
    def expected(self) -> Mapping[str, float]:
        """ACC and BWT (%) that the paper prints for the suite, by method; empty where it has none."""
        return {}

    @abstractmethod
    def missing(self, tasks: Iterable[str]) -> list[str]:
        """What these tasks need and is not on this machine, one line each with what to fetch."""

    def check(self, tasks: Sequence[str], *, labels: bool = False) -> None:
        """Refuses to start while something is missing. Raises ConfigError, which lists all of it.

        ``labels``: the labelled training data too.
        """
        lines = self.missing(tasks)
        for task in tasks if labels else ():
            try:
                self.train(task)
            except ConfigError as error:
                lines.append(str(error))
        if lines:
            listed = "\n".join(f"  - {line}" for line in lines)
            raise ConfigError(f"suite {self.name!r}: {len(lines)} to fetch first:\n{listed}")

    def require(self, task: str) -> None:
        """Refuses a task that the suite does not have. Raises UnknownNameError."""
        if task not in self.tasks:
            raise UnknownNameError(f"task of suite {self.name!r}", task, self.tasks)


def task_head(suite: Suite, task: str, backbone: Backbone, base: Checkpoint) -> Head | None:
    """The task's classifier: the suite's own, or else the one beside the task's checkpoint.

    Raises UnknownNameError, CheckpointError.
    """
    return suite.head(task) or backbone.head(backbone.open(suite.checkpoint(task), base), base=base)


SUITES: Registry[Suite] = Registry("suite", "mingle.suites")


def suite_part(source: str) -> tuple[Suite, str] | None:
    """Splits ``suite:part``; None when ``source`` is an ordinary path or hub id. Raises UnknownNameError."""
    suite, colon, part = source.partition(":")
    if (
        not colon
        or len(suite) < 2
        or not suite.isidentifier()
        or part.startswith("//")
        or Path(source).exists()
    ):
        return None
    return SUITES.get(suite), part


def locate(source: str | Path) -> str | Path:
    """The model folder or hub id behind ``suite:base`` or ``suite:task``; any other source unchanged."""
    found = suite_part(str(source))
    if found is None:
        return source
    suite, part = found
    return suite.base if part == "base" else suite.checkpoint(part)
