"""A suite that ``mingle suite build`` makes in the cache."""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

from mingle.errors import ConfigError
from mingle.suites._build.folder import WorkFolder, cache_folder
from mingle.suites._build.workers import Progress
from mingle.suites.base_folder import FolderSuite


@dataclass(frozen=True)
class BuildOptions:
    """What a build can be told; None and False leave it to the suite.

    ``train``: write labelled training images too. ``jobs``: processes that fine-tune. ``base``: a folder or
    hub id of the pretrained model, instead of the package that carries it.
    """

    train: bool = False
    jobs: int | None = None
    base: str | Path | None = None


class Plan(Protocol):
    """What a build still has to do."""

    def estimate(self) -> str:
        """What is left to do and how long it will take here."""

    def build(self, progress: Progress) -> Path:
        """Does it; the folder of the suite. Raises ConfigError."""


@dataclass(frozen=True)
class BuiltSuite(FolderSuite):
    """A suite in the cache, whether it is there already or not; its name is the folder's."""

    minutes: int = 0
    """How long building it takes on two CPU cores."""

    megabytes: int = 0
    """How much is downloaded for it at most."""

    @classmethod
    def built(cls, name: str, **figures: int) -> Self:
        """The suite of that name in the cache; ``figures``: ``minutes`` and ``megabytes``."""
        return cls(WorkFolder(cache_folder(), "").suite(name), **figures)

    @abstractmethod
    def plan(self, root: Path, options: BuildOptions) -> Plan:
        """What building it in the cache folder ``root`` still has to do. Raises ConfigError."""

    @property
    def ready(self) -> bool:
        """Whether the suite is there to be used."""
        return (self.folder / "suite.json").exists()

    @property
    def name(self) -> str:
        """Name of the suite."""
        return self.folder.name

    @cached_property
    def description(self) -> dict[str, Any]:
        """``suite.json``. Raises ConfigError that says how to build a suite that is not there."""
        if not self.ready:
            raise ConfigError(self._advice())
        return super().description

    def checkpoint(self, task: str) -> Path:
        """Folder of a task's fine-tuned model. Raises UnknownNameError, or ConfigError before the build."""
        self.require(task)
        if not self.ready:
            raise ConfigError(self._advice())
        return super().checkpoint(task)

    def missing(self, tasks: Iterable[str]) -> list[str]:
        """What is not there; of a suite that is not built, that it is not."""
        return super().missing(tasks) if self.ready else [self._advice()]

    def _advice(self) -> str:
        return (
            f"suite {self.name!r} is not built ({self.folder} does not exist); "
            f"run `mingle suite build {self.name}` (about {self.minutes} minutes on 2 CPU cores, "
            f"up to {self.megabytes} MB of downloads)"
        )
