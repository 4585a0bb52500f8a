"""What a run says of itself, read without a tensor, and so without waiting for torch."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

from mingle.errors import RunDamagedError, UnknownNameError
from mingle.state.run_config import Header, StepInfo, check_stored
from mingle.state.run_folder import RunFolder


class History:
    """The tasks that were merged in a folder, and what is stored about each. Only ``undo`` changes anything.

    The object always shows the run as it was when it was opened or last changed through it.
    """

    def __init__(self, folder: RunFolder) -> None:
        check_stored(Header, dict(folder.manifest.header), f"{folder.path}: header")
        self._folder = folder

    @classmethod
    def open(cls, path: str | Path, *, check_files: bool = True) -> Self:
        """Opens a run: reads its manifest, and compares the sizes of its files with it.

        ``check_files=False`` opens a damaged run too, to verify it or to undo its last step.

        Raises RunError, RunDamagedError or RunSchemaError.
        """
        return cls(RunFolder.open(path, check_files=check_files))

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self._folder.path

    @property
    def header(self) -> Mapping[str, Any]:
        """Id, method, preset, options, backbone, seed, base and versions, as stored at creation."""
        return self._folder.manifest.header

    @property
    def fingerprint(self) -> str:
        """sha256 of the manifest, which covers every file of every step."""
        return self._folder.manifest.sha256

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the merged tasks, oldest first."""
        return tuple(step.name for step in self._folder.manifest.steps)

    def info(self, task: str) -> dict[str, Any]:
        """What is stored about a task's step: checkpoint, versions, report. Raises UnknownNameError."""
        return step_info(self._folder, self._index(task))

    def size_bytes(self) -> int:
        """Size of the run on disk."""
        return self._folder.size_bytes()

    def verify(self) -> list[str]:
        """Reads every byte and returns every problem found, one line each; an empty list means whole."""
        return self._folder.verify()

    def undo(self) -> str:
        """Drops the newest step and returns its task. Raises RunError when there is none."""
        self._folder, entry = self._folder.undo()
        return entry.name

    def lock(self, timeout: float = 0) -> AbstractContextManager[None]:
        """Keeps other writers out. Raises RunLockedError after ``timeout`` seconds."""
        return self._folder.lock(timeout)

    def _index(self, task: str) -> int:
        if task not in self.tasks:
            raise UnknownNameError(f"task of {self.path}", task, self.tasks)
        return self.tasks.index(task)


def step_info(folder: RunFolder, index: int) -> dict[str, Any]:
    """``step.json`` of the step at ``index``. Raises RunDamagedError for one that no method wrote."""
    info, name = folder.info(index), folder.manifest.steps[index].name
    check_stored(StepInfo, info, f"{folder.path}: step.json of {name!r}")
    if info["task"] != name:
        raise RunDamagedError(f"{folder.path}: step {name!r}: expected its own task, found {info['task']!r}")
    return info
