"""Eight text tasks for all-MiniLM-L6-v2, a real sentence encoder; fine-tuned on this machine."""

from dataclasses import dataclass
from pathlib import Path

from mingle.suites._minilm.recipe import TASKS
from mingle.suites.base_built import BuildOptions, BuiltSuite, Plan


@dataclass(frozen=True)
class MiniLM8(BuiltSuite):
    """See docs/real-suites.md. Training texts are always there."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks in their order, known before the suite is built."""
        return tuple(TASKS)

    def plan(self, root: Path, options: BuildOptions) -> Plan:
        """See ``BuiltSuite``."""
        from mingle.suites._minilm.build import MiniLMBuild

        return MiniLMBuild.plan(self.name, root, options.jobs, options.base)


PLUGIN = MiniLM8.built("minilm8", minutes=30, megabytes=153)
