"""What the files of a run hold: ``mingle.json``, and the one way in which JSON becomes bytes.

The manifest names every file of a step with its size and sha256. Every step carries a chain hash over the
chain before it and its own entry, starting from the header: no step can be altered, swapped or moved to
another run unnoticed. ``sha256`` covers what the manifest says, and only the one form in which it is written
is accepted: no byte is free. Hashes find accidents; they are no signature.
"""

import errno
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from mingle.errors import RunDamagedError, RunError, RunSchemaError
from mingle.files import NAME_PATTERN, is_plain_name, read_bytes

SCHEMA_VERSION = 1
MANIFEST_FILE = "mingle.json"
STEP_JSON = "step.json"
TENSORS_SUFFIX = ".safetensors"

Name = Annotated[str, StringConstraints(pattern=rf"^{NAME_PATTERN}$")]
# The files of a step never leave its folder, whatever a manifest from elsewhere says.
FileName = Annotated[str, StringConstraints(pattern=rf"^({NAME_PATTERN}\.safetensors|step\.json)$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileEntry(_Record):
    """What the manifest says about one file."""

    sha256: Sha256
    size: Annotated[int, Field(ge=0)]

    @classmethod
    def of_file(cls, path: Path) -> Self:
        """The entry of a file of any size; raises OSError."""
        _require_file(path)
        with path.open("rb") as file:
            return cls(sha256=hashlib.file_digest(file, "sha256").hexdigest(), size=file.tell())

    def difference(self, path: Path, found: "FileEntry") -> str | None:
        """One line on what was found at ``path`` instead of this; None where it is the same."""
        for what in ("size", "sha256"):
            if (wanted := getattr(self, what)) != (got := getattr(found, what)):
                return f"{path}: expected {what} {wanted}, found {got}; restore the file from a copy"
        return None


class StepEntry(_Record):
    """One step: a task that was merged, and the files that hold what came of it."""

    name: Name
    folder: str
    summary: dict[str, Any]
    files: dict[FileName, FileEntry]
    chain: Sha256

    def problems(self, folder: Path, *, content: bool) -> Iterator[str]:
        """One line per file in ``folder`` that is missing or altered, going by its size or by its content."""
        for name in sorted(self.files):
            if problem := self.problem(folder / name, content=content):
                yield problem

    def problem(self, path: Path, *, content: bool) -> str | None:
        """One line on the file at ``path`` if it is missing or altered."""
        entry = self.files[path.name]
        try:
            size = path.stat().st_size
            found = FileEntry.of_file(path) if content else entry.model_copy(update={"size": size})
        except OSError as error:
            return _unreadable(path, error)
        return entry.difference(path, found)

    def read(self, path: Path) -> tuple[bytes, str | None]:
        """The content of the file at ``path``, and one line on it if it is missing or altered."""
        try:
            _require_file(path)
            data = path.read_bytes()
        except OSError as error:
            return b"", _unreadable(path, error)
        found = FileEntry(sha256=_sha256(data), size=len(data))
        return data, self.files[path.name].difference(path, found)


class Manifest(_Record):
    """The content of ``mingle.json``: a header and the steps in order."""

    schema_version: int
    header: dict[str, Any]
    steps: Annotated[tuple[StepEntry, ...], Field(strict=False)] = ()

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read and check the manifest of the run in ``folder``.

        Raises:
            RunError: there is no run, or its manifest cannot be read.
            RunDamagedError: the manifest is truncated or altered, or its chain of steps is broken.
            RunSchemaError: a newer version of mingle wrote it.

        """
        path = folder / MANIFEST_FILE
        try:
            data = read_bytes(path)
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(
                f"{folder}: not a run, it holds no {MANIFEST_FILE}; check the path or create the run first"
            ) from None
        except OSError as error:
            raise RunError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
        except ValueError as error:
            raise RunDamagedError(f"{path}: {error}; {_RESTORE}") from error
        return cls.from_bytes(data, path)

    @classmethod
    def from_bytes(cls, data: bytes, path: Path) -> Self:
        """Check the bytes of a manifest, found at ``path``; raises as `load` does."""
        content = read_json(data, path)
        version = content.get("schema_version")
        if type(version) is int and version > SCHEMA_VERSION:
            raise RunSchemaError(
                f"{path}: expected schema version {SCHEMA_VERSION} or older, found {version}; update mingle"
            )
        expected = content.pop("sha256", None)
        try:
            found = _sha256(canonical_json(content, str(path)))
            if found != expected:
                raise RunDamagedError(f"{path}: expected sha256 {expected}, found {found}; {_RESTORE}")
            manifest = cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise RunDamagedError(f"{path}: {where}: {first['msg']}; {_RESTORE}") from error
        if problem := manifest._inconsistency():
            raise RunDamagedError(f"{path}: {problem}; {_RESTORE}")
        # Another spelling of the same values, 1E-3 say, has the same hash.
        if data != manifest.to_bytes():
            raise RunDamagedError(f"{path}: expected the bytes that mingle writes, found others; {_RESTORE}")
        return manifest

    def to_bytes(self) -> bytes:
        """The manifest as it stands on disk: the same manifest gives the same bytes."""
        return readable_json({**self.model_dump(), "sha256": self.sha256}, MANIFEST_FILE)

    @property
    def sha256(self) -> str:
        """The hash over everything else in the manifest."""
        return _sha256(canonical_json(self.model_dump(), MANIFEST_FILE))

    def with_step(self, name: str, summary: Mapping[str, Any], files: Mapping[str, FileEntry]) -> "Manifest":
        """The manifest with one more step."""
        folder = step_folder(len(self.steps), name)
        # The chain is not known before the rest of the entry is, and the pattern of a hash wants one.
        draft = StepEntry(name=name, folder=folder, summary=dict(summary), files=dict(files), chain="0" * 64)
        entry = draft.model_copy(update={"chain": _chain(self._head(), draft)})
        return self.model_copy(update={"steps": (*self.steps, entry)})

    def without_last_step(self) -> "Manifest":
        """The manifest without its last step."""
        return self.model_copy(update={"steps": self.steps[:-1]})

    def _root(self) -> str:
        return _sha256(canonical_json(self.model_dump(exclude={"steps"}), MANIFEST_FILE))

    def _head(self) -> str:
        return self.steps[-1].chain if self.steps else self._root()

    def _inconsistency(self) -> str | None:
        if self.schema_version != SCHEMA_VERSION:
            return f"expected schema version {SCHEMA_VERSION}, found {self.schema_version}"
        chain = self._root()
        names = set()
        for index, step in enumerate(self.steps):
            chain = _chain(chain, step)
            if step.chain != chain:
                return f"chain broken at step {index + 1} ({step.name}): expected {chain}, found {step.chain}"
            if step.folder != step_folder(index, step.name):
                return f"expected folder {step_folder(index, step.name)}, found {step.folder!r}"
            if step.name in names:
                return f"expected every task once, found {step.name!r} twice"
            names.add(step.name)
        return None


_RESTORE = "the manifest was altered; restore it from a copy"


def _require_file(path: Path) -> None:
    """Refuse a device, which would be read for ever; raises OSError."""
    if not path.is_file():
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))


def _unreadable(path: Path, error: OSError) -> str:
    """One line on a file that is not there or cannot be read."""
    return f"{path}: expected a file, found none to read ({error.strerror}); restore the file from a copy"


def step_folder(index: int, name: str) -> str:
    """The folder of the step at ``index`` (counted from 0)."""
    return f"{index + 1:04d}-{name}"


def require_vacant(folder: Path) -> None:
    """Refuse a folder that holds anything where a run is to begin; raises RunError."""
    if (folder / MANIFEST_FILE).exists():
        raise RunError(f"{folder}: already holds a run; open it, or choose another folder")
    # Hidden files of ours: an interrupted create may be tried again.
    ours = folder.is_dir() and all(item.name.startswith(".mingle.") for item in folder.iterdir())
    if folder.exists() and not ours:
        raise RunError(f"{folder}: expected a new or empty folder, found other files; choose another folder")


def check_name(name: str, what: str) -> None:
    """Refuse a name that is not also a safe file name; raises RunError."""
    if not is_plain_name(name):
        raise RunError(
            f"{what}: expected 1 to 100 of the characters A-Z a-z 0-9 . _ - without a leading dot, "
            f"found {name!r}; choose another name"
        )


def canonical_json(value: object, what: str) -> bytes:
    """The one compact form of a JSON value, for hashes; raises RunError where ``value`` is none."""
    return _dump(value, what, indent=None, separators=(",", ":"))


def readable_json(value: object, what: str) -> bytes:
    """The one indented form of a JSON value, for files; raises RunError where ``value`` is none."""
    return _dump(value, what, indent=1, separators=(",", ": ")) + b"\n"


def plain_json(value: Mapping[str, Any], what: str) -> dict[str, Any]:
    """A copy of a JSON object as it will be read back; raises RunError where ``value`` is none."""
    return read_json(canonical_json(dict(value), what), Path(what))


def read_json(data: bytes, path: Path) -> dict[str, Any]:
    """The JSON object in ``data``, found at ``path``; raises RunDamagedError where there is none."""
    try:
        content = json.loads(data.decode("utf-8"), parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise RunDamagedError(
            f"{path}: expected JSON, found {error}; restore the file from a copy"
        ) from error
    if not isinstance(content, dict):
        found = type(content).__name__
        raise RunDamagedError(f"{path}: expected a JSON object, found {found}; restore the file from a copy")
    return content


def _chain(previous: str, entry: StepEntry) -> str:
    return _sha256(previous.encode() + canonical_json(entry.model_dump(exclude={"chain"}), MANIFEST_FILE))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _dump(value: object, what: str, indent: int | None, separators: tuple[str, str]) -> bytes:
    try:
        _require_text_keys(value)
        text = json.dumps(
            value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=indent, separators=separators
        )
        return text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise RunError(
            f"{what}: expected plain JSON (text keys, finite numbers), found: {error}; convert it first"
        ) from error


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text}")
    return number


def _require_text_keys(value: object) -> None:
    # json.dumps would turn the key 1 into "1", and what is read back would not be what was given.
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"the key {key!r}")
            _require_text_keys(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _require_text_keys(item)
