"""The glyph suites: ``glyph8`` is shipped, the larger ones are built into the cache on demand."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from mingle.errors import ConfigError
from mingle.suites._glyph.build_folder import BuildFolder, cache_folder
from mingle.suites._glyph.recipe import suite_tasks
from mingle.suites.base_folder import FolderSuite


@dataclass(frozen=True)
class GlyphSuite(FolderSuite):
    """A suite that ``mingle suite build`` makes, or, for ``glyph8``, adds labelled training images to.

    The training images of a task are shared by all suites that have it; they lie in the cache.
    """

    minutes: int = 0
    """How long building it takes on two CPU cores."""

    @classmethod
    def built(cls, name: str, minutes: int) -> "GlyphSuite":
        """The suite of that name in the cache, whether it is there already or not."""
        return cls(BuildFolder(cache_folder()).suite(name), minutes)

    @property
    def ready(self) -> bool:
        """Whether the suite is there to be used."""
        return (self.folder / "suite.json").exists()

    @property
    def name(self) -> str:
        """Name of the suite."""
        return self.folder.name

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks in their order, known before the suite is built."""
        return suite_tasks(self.name)

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

    def train(self, task: str) -> tuple[Tensor, Tensor]:
        """Images uint8 (N, 3, 32, 32) of the training side, and labels. Raises ConfigError."""
        path = self._file(task, ".train")
        if not path.exists():
            raise ConfigError(
                f"{path}: no training images of task {task!r}; run `mingle suite build {self.name} --train`"
            )
        return super().train(task)

    def missing(self, tasks: Iterable[str]) -> list[str]:
        """What is not there; of a suite that is not built, that it is not."""
        return super().missing(tasks) if self.ready else [self._advice()]

    def _advice(self) -> str:
        return (
            f"suite {self.name!r} is not built ({self.folder} does not exist); "
            f"run `mingle suite build {self.name}` (about {self.minutes} minutes on 2 CPU cores, "
            "up to 350 MB of downloads)"
        )

    def _file(self, task: str, part: str = "") -> Path:
        self.require(task)
        return BuildFolder(cache_folder()).train(task) if part else super()._file(task)
