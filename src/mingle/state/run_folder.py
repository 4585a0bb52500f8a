"""A run on disk: tensors and JSON in, tensors and JSON out, whatever the method.

::

    run/
      mingle.json                what the run consists of (see manifest.py)
      steps/0001-sun397/         experts.safetensors  gates.safetensors  ...  step.json

A step is written under a temporary name, synced, renamed, and only then does ``mingle.json``, replaced in one
instant, name it. What the manifest does not name is no part of the run: whenever a process dies or a disk is
full, the previous state is there, whole, and what was left behind goes with the next change.
"""

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from pathlib import Path
from re import fullmatch
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from mingle.errors import RunDamagedError, RunError, TaskExistsError
from mingle.state.lock import HOLDER_FILE, LOCK_FILE, hold
from mingle.state.manifest import (
    MANIFEST_FILE,
    NAME_PATTERN,
    SCHEMA_VERSION,
    TEMPORARY_MANIFEST,
    FileEntry,
    Manifest,
    StepEntry,
    check_name,
    read_json,
    readable_json,
    step_folder,
    sync_folder,
    write_file,
)

_STEP_JSON = "step.json"
_SUFFIX = ".safetensors"
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
        readable = readable_json(dict(header), "header")
        manifest = Manifest(schema_version=SCHEMA_VERSION, header=read_json(readable, folder / MANIFEST_FILE))
        with _explained(folder, "create the run"):
            _require_vacant(folder)
            folder.mkdir(parents=True, exist_ok=True)
            with hold(folder):
                _require_vacant(folder)
                try:
                    manifest.save(folder)
                    sync_folder(folder.parent)
                except BaseException:
                    (folder / MANIFEST_FILE).unlink(missing_ok=True)
                    raise
        return cls(folder, manifest)

    @classmethod
    def open(cls, path: str | Path, *, check_files: bool = True) -> "RunFolder":
        """Open a run: checks the manifest, and that every file is there with the right size.

        The content of a file is checked when it is read, or by `verify`. ``check_files=False`` opens a run with
        missing or truncated files too, to `verify` it or to `undo` the damaged step.

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
        tensors: Mapping[str, Mapping[str, torch.Tensor]],
        info: Mapping[str, Any],
        *,
        summary: Mapping[str, Any] | None = None,
    ) -> "RunFolder":
        """Add a step and return the run with it; whatever goes wrong, the run stays as it was.

        ``tensors`` gives the content of each ``<stem>.safetensors``, ``info`` that of ``step.json``, and
        ``summary`` the few figures that the manifest itself shows.

        Raises:
            TaskExistsError: the run holds a step of that name.
            RunLockedError: another process is writing.
            RunError: a name, tensor or value that cannot be stored, a run that changed since it was opened, or
                a disk that is full or fails.

        """
        check_name(name, "task name")
        for stem in tensors:
            check_name(stem, f"name of the tensor file of step {name!r}")
        if name in [step.name for step in self.manifest.steps]:
            raise TaskExistsError(
                f"{self.path}: already holds {name!r}; choose another name, or undo up to it"
            )
        step_json = readable_json(dict(info), f"info of step {name!r}")
        readable_json(dict(summary or {}), f"summary of step {name!r}")
        with self.lock(), _explained(self.path, f"add step {name!r}"):
            self._check_unchanged()
            self._check_sizes()
            self._remove_leftovers()
            try:
                files = self._write_step(step_folder(len(self.manifest.steps), name), tensors, step_json)
            except BaseException:
                self._remove_leftovers()
                raise
            return self._commit(self.manifest.with_step(name, summary or {}, files))

    def undo(self) -> tuple["RunFolder", StepEntry]:
        """Drop the last step; returns the run without it, and its entry.

        Raises:
            RunLockedError: another process is writing.
            RunError: there is no step, the run changed since it was opened, or the disk is full or fails.

        """
        with self.lock(), _explained(self.path, "undo the last step"):
            self._check_unchanged()
            if not self.manifest.steps:
                raise RunError(f"{self.path}: holds no step; there is nothing to undo")
            run = self._commit(self.manifest.without_last_step())
            run._remove_leftovers()
            return run, self.manifest.steps[-1]

    def read(self, index: int, stem: str) -> dict[str, torch.Tensor]:
        """The tensors of one file of the step at ``index``, in order of name.

        Raises:
            RunError: there is no such step or file.
            RunDamagedError: the file is missing, truncated or altered.

        """
        data = self._read_file(index, stem + _SUFFIX)
        # The bytes that were hashed are the bytes that are used: a map of the file could change in between.
        try:
            tensors: dict[str, torch.Tensor] = load(data)
        except (SafetensorError, KeyError) as error:
            raise RunError(
                f"{self._file(self._step(index), stem + _SUFFIX)}: this version of safetensors cannot read it "
                f"({error}); update safetensors"
            ) from error
        return dict(sorted(tensors.items()))

    def stems(self, index: int) -> tuple[str, ...]:
        """What `read` can read of the step at ``index``, in order."""
        return tuple(
            name.removesuffix(_SUFFIX) for name in sorted(self._step(index).files) if name != _STEP_JSON
        )

    def info(self, index: int) -> dict[str, Any]:
        """The content of ``step.json`` of the step at ``index``; raises as `read` does."""
        return read_json(self._read_file(index, _STEP_JSON), self._file(self._step(index), _STEP_JSON))

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
            for name in sorted(step.files):
                problems += run._problems(step, name, content=True)
        return problems

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

    def _file(self, step: StepEntry, name: str) -> Path:
        return self.path / "steps" / step.folder / name

    def _read_file(self, index: int, name: str) -> bytes:
        step = self._step(index)
        if name not in step.files:
            known = ", ".join(sorted(step.files))
            raise RunError(f"{self.path}: step {step.name!r} holds no {name}; it holds {known}")
        path = self._file(step, name)
        try:
            data = path.read_bytes()
        except OSError as error:
            self._damaged(_unreadable(path, error))
        if problem := step.files[name].problem(path, len(data), hashlib.sha256(data).hexdigest()):
            self._damaged(problem)
        return data

    def _problems(self, step: StepEntry, name: str, *, content: bool) -> list[str]:
        path = self._file(step, name)
        digest = None
        try:
            if content:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            problem = step.files[name].problem(path, path.stat().st_size, digest)
        except OSError as error:
            problem = _unreadable(path, error)
        return [problem] if problem else []

    def _check_sizes(self) -> None:
        for step in self.manifest.steps:
            for name in sorted(step.files):
                for problem in self._problems(step, name, content=False):
                    self._damaged(problem)

    def _damaged(self, problem: str) -> NoReturn:
        self._check_unchanged()  # a step that another process undid is not damage
        raise RunDamagedError(problem)

    def _check_unchanged(self) -> None:
        if Manifest.load(self.path).sha256 != self.manifest.sha256:
            raise RunError(f"{self.path}: changed by another process; open it again")

    def _write_step(
        self, folder: str, tensors: Mapping[str, Mapping[str, torch.Tensor]], step_json: bytes
    ) -> dict[str, FileEntry]:
        steps = self.path / "steps"
        steps.mkdir(exist_ok=True)
        temporary = steps / f"{_TEMPORARY}{folder}"
        temporary.mkdir()
        files = {_STEP_JSON: write_file(temporary / _STEP_JSON, step_json)}
        for stem in sorted(tensors):
            path = temporary / f"{stem}{_SUFFIX}"
            files[path.name] = write_file(path, _encode(tensors[stem], path.name))
        sync_folder(temporary)
        temporary.rename(steps / folder)
        sync_folder(steps)
        sync_folder(self.path)
        return files

    def _commit(self, manifest: Manifest) -> "RunFolder":
        try:
            manifest.save(self.path)
        except BaseException:
            # What failed may have been the sync after the rename, with the new manifest already in place.
            if Manifest.load(self.path).sha256 != self.manifest.sha256:
                self.manifest.save(self.path)
            self._remove_leftovers()
            raise
        return RunFolder(self.path, manifest)

    def _remove_leftovers(self) -> None:
        """Remove the steps that the manifest on disk does not name; what resists is no part of the run."""
        named = {step.folder for step in Manifest.load(self.path).steps}
        for folder in (self.path / "steps").glob("*"):
            if folder.name not in named and fullmatch(_OURS, folder.name):
                shutil.rmtree(folder, ignore_errors=True)


def _encode(tensors: Mapping[str, torch.Tensor], what: str) -> bytes:
    """The tensors as safetensors: the same ones give the same bytes; raises RunError."""
    plain: dict[str, torch.Tensor] = {}
    storages = set()
    try:
        for name in sorted(tensors):
            # safetensors would store the memory behind a conjugate or negative view, not its values.
            tensor = tensors[name].detach().cpu().resolve_conj().resolve_neg().contiguous()
            storage = tensor.untyped_storage().data_ptr()
            # It refuses tensors that overlap (tied weights): each is stored for itself.
            plain[name] = tensor.clone() if storage in storages else tensor
            storages.add(storage)
        if "__metadata__" in plain:
            raise ValueError("the name '__metadata__', which the format reserves")
        data: bytes = save(plain)
    except (SafetensorError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise RunError(f"{what}: expected named dense tensors, found: {error}; convert them first") from error
    return data


def _require_vacant(folder: Path) -> None:
    if (folder / MANIFEST_FILE).exists():
        raise RunError(f"{folder}: already holds a run; open it, or choose another folder")
    ours = {LOCK_FILE, HOLDER_FILE, TEMPORARY_MANIFEST}  # an interrupted create may be tried again
    if folder.exists() and (not folder.is_dir() or any(item.name not in ours for item in folder.iterdir())):
        raise RunError(f"{folder}: expected a new or empty folder, found other files; choose another folder")


def _unreadable(path: Path, error: OSError) -> str:
    return f"{path}: expected a file, found none to read ({error.strerror}); restore the file from a copy"


@contextmanager
def _explained(folder: Path, action: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (ENOSPC, EDQUOT)
        advice = "free some space" if full else "check the disk and the permissions of the folder"
        reason = error.strerror or error
        raise RunError(
            f"{folder}: could not {action} ({reason}); the run is as it was; {advice} and try again"
        ) from error
