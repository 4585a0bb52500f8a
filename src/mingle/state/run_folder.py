"""A run on disk: tensors and JSON in, tensors and JSON out, whatever the method.

::

    run/
      mingle.json                what the run consists of (see manifest.py)
      steps/0001-sun397/         experts.safetensors  gates.safetensors  ...  step.json

A step is written under a temporary name, synced, renamed, and only then does ``mingle.json``, replaced in one
instant, name it. What the manifest does not name is no part of the run: whenever a process dies or a disk is
full, the previous state is there, whole, and what was left behind goes with the next change.
"""

import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from re import fullmatch
from typing import TYPE_CHECKING, Any, NoReturn

from mingle.errors import RunDamagedError, RunError, TaskExistsError
from mingle.files import NAME_PATTERN
from mingle.state.lock import explained, hold, replace_file, sync_folder, write_file
from mingle.state.manifest import (
    MANIFEST_FILE,
    SCHEMA_VERSION,
    STEP_JSON,
    TENSORS_SUFFIX,
    FileEntry,
    Manifest,
    StepEntry,
    check_name,
    plain_json,
    read_json,
    require_vacant,
    step_folder,
)

# What a run says of itself is read without waiting for torch.
if TYPE_CHECKING:
    from torch import Tensor

    from mingle.weights import LazyTensors

Info = Mapping[str, Any] | Callable[[], Mapping[str, Any]]
_TEMPORARY = ".tmp-"
# Names that an interrupted append or undo may leave in steps/; anything else there is not ours to remove.
_OURS = rf"({_TEMPORARY})?\d{{4,}}-{NAME_PATTERN}"


@dataclass(frozen=True)
class RunFolder:
    """A run as it was when opened; a change returns the run as it is afterwards."""

    path: Path
    manifest: Manifest

    @classmethod
    def create(cls, path: str | Path, header: Mapping[str, Any]) -> "RunFolder":
        """Start a run without steps in a new or empty folder.

        ``header`` is any JSON object: what was configured, what the base was.

        Raises:
            RunError: the folder holds a run or anything else, cannot be written, or ``header`` is not JSON.

        """
        folder = Path(path)
        manifest = Manifest(schema_version=SCHEMA_VERSION, header=plain_json(header, "header"))
        with explained(folder, "create the run"):
            require_vacant(folder)
            folder.mkdir(parents=True, exist_ok=True)
            with hold(folder):
                require_vacant(folder)
                try:
                    replace_file(folder / MANIFEST_FILE, manifest.to_bytes())
                    sync_folder(folder.parent)
                except BaseException:
                    (folder / MANIFEST_FILE).unlink(missing_ok=True)
                    raise
        return cls(folder, manifest)

    @classmethod
    def open(cls, path: str | Path, *, check_files: bool = True) -> "RunFolder":
        """Open a run: checks the manifest, and that every file is there with the right size.

        The content of a file is checked when it is read, or by `verify`. ``check_files=False`` opens a
        damaged run too, to `verify` it or to `undo` its last step.

        Raises:
            RunError: there is no run at ``path``.
            RunDamagedError: the manifest or a file is missing, truncated or altered.
            RunSchemaError: a newer version of mingle wrote it.

        """
        folder = Path(path)
        run = cls(folder, Manifest.load(folder))
        if check_files:
            run._check_sizes()
        return run

    def append(
        self,
        name: str,
        tensors: Mapping[str, Mapping[str, "Tensor"]],
        info: Info,
        *,
        summary: Mapping[str, Any] | None = None,
    ) -> "RunFolder":
        """Add a step and return the run with it; whatever goes wrong, the run stays as it was.

        ``tensors`` gives the content of each ``<stem>.safetensors``, ``info`` of ``step.json`` (called
        once these are written, if it is a function), ``summary`` the few figures that the manifest shows.

        Raises:
            TaskExistsError: the run holds that step.
            RunLockedError: another process is writing.
            RunDamagedError: a file of an earlier step is missing or truncated.
            RunError: what cannot be stored, a run that changed since it was opened, a disk that fails.

        """
        self.check_addition(name)
        for stem in tensors:
            check_name(stem, f"name of the tensor file of step {name!r}")
        shown = plain_json(summary or {}, f"summary of step {name!r}")
        with self.lock(), explained(self.path, f"add step {name!r}"):
            self._check_unchanged()
            self._check_sizes()
            self._remove_leftovers()
            try:
                files = self._write_step(step_folder(len(self.manifest.steps), name), tensors, info)
            except BaseException:
                self._remove_leftovers()
                raise
            return self._commit(self.manifest.with_step(name, shown, files))

    def check_addition(self, name: str) -> None:
        """Refuse what `append` would, before the work of making a step; raises as it does."""
        check_name(name, "task name")
        if name in [step.name for step in self.manifest.steps]:
            raise TaskExistsError(f"{self.path}: task {name!r} is already merged; choose another name")
        self._check_unchanged()

    def undo(self) -> tuple["RunFolder", StepEntry]:
        """Drop the last step; returns the run without it, and its entry.

        Raises:
            RunLockedError: another process is writing.
            RunError: there is no step, the run changed since it was opened, or the disk is full or fails.

        """
        with self.lock(), explained(self.path, "undo the last step"):
            self._check_unchanged()
            if not self.manifest.steps:
                raise RunError(f"{self.path}: holds no step; there is nothing to undo")
            run = self._commit(self.manifest.without_last_step())
            run._remove_leftovers()
            return run, self.manifest.steps[-1]

    def read(self, index: int, stem: str) -> "LazyTensors":
        """The tensors of one file of the step at ``index``, each read when it is asked for, and not kept.

        The whole file is checked now, and again should it change before a tensor is read.

        Raises:
            RunError: there is no such step or file.
            RunDamagedError: the file is missing, truncated or altered.

        """
        from mingle.state.tensor_file import open_tensors

        step, path = self._locate(index, stem + TENSORS_SUFFIX)
        return open_tensors(path, lambda: self._check(step, path))

    def stems(self, index: int) -> tuple[str, ...]:
        """What `read` can read of the step at ``index``, in order."""
        names = sorted(self._step(index).files)
        return tuple(name.removesuffix(TENSORS_SUFFIX) for name in names if name != STEP_JSON)

    def info(self, index: int) -> dict[str, Any]:
        """The content of ``step.json`` of the step at ``index``; raises as `read` does."""
        step, path = self._locate(index, STEP_JSON)
        data, problem = step.read(path)
        if problem:
            self._damaged(step, problem)
        return read_json(data, path)

    def verify(self) -> list[str]:
        """Check every byte of the run as it stands on disk; returns one line per problem, [] if it is whole.

        Leftovers of an interrupted change are no problem: the next change removes them.
        """
        run, problems = self, []
        try:
            run = RunFolder.open(self.path, check_files=False)
        except RunError as error:
            problems.append(str(error))
        for step in run.manifest.steps:
            problems += step.problems(run._folder(step), content=True)
        # What another process undid in the meantime is no damage.
        return self.verify() if problems and run is not self and run._changed() else problems

    def lock(self, timeout: float = 0) -> AbstractContextManager[None]:
        """Keep other writers out, across several changes; see `mingle.state.lock.hold`."""
        return hold(self.path, timeout)

    def size_bytes(self) -> int:
        """The size of everything that belongs to the run."""
        files = (entry.size for step in self.manifest.steps for entry in step.files.values())
        return len(self.manifest.to_bytes()) + sum(files)

    def _step(self, index: int) -> StepEntry:
        try:
            return self.manifest.steps[index]
        except IndexError:
            count = len(self.manifest.steps)
            raise RunError(f"{self.path}: expected a step index below {count}, found {index}") from None

    def _folder(self, step: StepEntry) -> Path:
        return self.path / "steps" / step.folder

    def _locate(self, index: int, name: str) -> tuple[StepEntry, Path]:
        step = self._step(index)
        if name not in step.files:
            known = ", ".join(sorted(step.files))
            raise RunError(f"{self.path}: step {step.name!r} holds no {name}; it holds {known}")
        return step, self._folder(step) / name

    def _check(self, step: StepEntry, path: Path) -> None:
        if problem := step.problem(path, content=True):
            self._damaged(step, problem)

    def _check_sizes(self) -> None:
        for step in self.manifest.steps:
            for problem in step.problems(self._folder(step), content=False):
                self._damaged(step, problem)

    def _damaged(self, step: StepEntry, problem: str) -> NoReturn:
        if step not in Manifest.load(self.path).steps:
            raise self._outdated()  # a step that another process undid is not damage
        raise RunDamagedError(problem)

    def _changed(self) -> bool:
        return Manifest.load(self.path).sha256 != self.manifest.sha256

    def _check_unchanged(self) -> None:
        if self._changed():
            raise self._outdated()

    def _outdated(self) -> RunError:
        return RunError(f"{self.path}: changed by another process; open it again")

    def _write_step(
        self, folder: str, tensors: Mapping[str, Mapping[str, "Tensor"]], info: Info
    ) -> dict[str, FileEntry]:
        from mingle.state.tensor_file import encode_step

        steps = self.path / "steps"
        steps.mkdir(exist_ok=True)
        temporary = steps / f"{_TEMPORARY}{folder}"
        temporary.mkdir()
        files = {}
        for name, parts in encode_step(tensors, info):
            sha256, size = write_file(temporary / name, parts)
            files[name] = FileEntry(sha256=sha256, size=size)
        sync_folder(temporary)
        temporary.rename(steps / folder)
        sync_folder(steps)
        sync_folder(self.path)
        return files

    def _commit(self, manifest: Manifest) -> "RunFolder":
        try:
            replace_file(self.path / MANIFEST_FILE, manifest.to_bytes())
        except BaseException:
            # What failed may have been the sync after the rename, with the new manifest already in place.
            if self._changed():
                self._put_back()
            self._remove_leftovers()
            raise
        return RunFolder(self.path, manifest)

    def _put_back(self) -> None:
        try:
            replace_file(self.path / MANIFEST_FILE, self.manifest.to_bytes())
        except OSError as error:
            raise RunError(
                f"{self.path}: the disk fails ({error.strerror or error}) and may keep the change or not; "
                "the run is whole either way: check the disk and open it again"
            ) from error

    def _remove_leftovers(self) -> None:
        """Remove the steps that the manifest on disk does not name; what resists is no part of the run."""
        named = {step.folder for step in Manifest.load(self.path).steps}
        for folder in (self.path / "steps").glob("*"):
            if folder.name not in named and fullmatch(_OURS, folder.name):
                shutil.rmtree(folder, ignore_errors=True)
