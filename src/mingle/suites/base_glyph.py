"""The glyph suites: ``glyph8`` is shipped, the larger ones are built into the cache on demand."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mingle.backbones import Samples
from mingle.errors import ConfigError
from mingle.suites._build.folder import cache_folder
from mingle.suites._glyph.build_folder import BuildFolder
from mingle.suites._glyph.recipe import suite_tasks
from mingle.suites.base_built import BuildOptions, BuiltSuite, Plan


@dataclass(frozen=True)
class GlyphSuite(BuiltSuite):
    """A suite that ``mingle suite build`` makes, or, for ``glyph8``, adds labelled training images to.

    The training images of a task are shared by all suites that have it; they lie in the cache.
    """

    megabytes: int = 350

    def plan(self, root: Path, options: BuildOptions) -> Plan:
        """See ``BuiltSuite``. The base is always the shipped one."""
        from mingle.suites._glyph.build import plan

        if options.base is not None:
            raise ConfigError(f"suite {self.name!r}: its base is shipped; build it without --base")
        return plan(self.name, BuildFolder(root), train=options.train, jobs=options.jobs)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks in their order, known before the suite is built."""
        return suite_tasks(self.name)

    def train(self, task: str) -> tuple[Samples, Tensor]:
        """Images uint8 (N, 3, 32, 32) of the training side, and labels. Raises ConfigError."""
        path = self._file(task, ".train")
        if not path.exists():
            raise ConfigError(
                f"{path}: no training images of task {task!r}; run `mingle suite build {self.name} --train`"
            )
        return super().train(task)

    def _file(self, task: str, part: str = "") -> Path:
        self.require(task)
        return BuildFolder(cache_folder()).train(task) if part else super()._file(task)
