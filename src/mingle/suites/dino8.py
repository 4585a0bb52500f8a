"""The eight tasks of ``glyph8`` at 70 pixels for a DINOv2 ViT-S/14, a real vision transformer."""

from dataclasses import dataclass
from pathlib import Path

from mingle.suites._glyph.recipe import suite_tasks
from mingle.suites.base_built import BuildOptions, BuiltSuite, Plan


@dataclass(frozen=True)
class Dino8(BuiltSuite):
    """See docs/real-suites.md. Training images are written with ``mingle suite build dino8 --train``."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks in their order, known before the suite is built."""
        return suite_tasks("glyph8")

    def plan(self, root: Path, options: BuildOptions) -> Plan:
        """See ``BuiltSuite``."""
        from mingle.suites._dino.build import DinoBuild

        return DinoBuild.plan(self.name, root, jobs=options.jobs, base=options.base, draw=options.train)


PLUGIN = Dino8.built("dino8", minutes=40, megabytes=441)
