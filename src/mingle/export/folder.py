"""Folders of exports: written whole or not at all, with the hash of every file in ``export.json``."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from mingle.errors import ExportError, RunDamagedError, RunLockedError
from mingle.state.lock import exchange, hold, sync_folder, write_file
from mingle.state.manifest import FileEntry, read_json, readable_json

EXPORT_FILE = "export.json"
CARD_FILE = "README.md"
SCHEMA = 2
OLDER = "older"


@contextmanager
def new_folder(out: Path, *, force: bool) -> Iterator[Path]:
    """A folder beside ``out`` that takes its place once all is written, and goes if anything fails.

    One that was killed is made good by the next: the earlier export is put back, the rest removed. Raises
    ExportError where ``out`` holds anything (with ``force``, anything but an earlier export), or is written.
    """
    # Names that the next export finds again, should this one be killed; the lock keeps two of them apart.
    work, new = (out.parent / f".{out.name}.export{end}" for end in ("", ".new"))
    try:
        work.mkdir(parents=True, exist_ok=True)
        with hold(work):
            try:
                _settle(out, new, work)
                _require_room(out, force=force)
                new.mkdir()
                yield new
                _require_room(out, force=force)
                _take_place(out, new, work)
            finally:
                _settle(out, new, work)
                shutil.rmtree(work, ignore_errors=True)
    except RunLockedError as error:
        raise ExportError(f"{out}: another export is writing there; wait until it is done") from error
    except OSError as error:
        raise ExportError(
            f"{out}: could not write the export ({error.strerror or error}); nothing was changed; "
            "check the disk and the permissions of the folder and try again"
        ) from error


def _take_place(out: Path, new: Path, work: Path) -> None:
    """Moves ``new`` to ``out``, in one instant where names can be swapped; or leaves all as it was."""
    written = new.stat().st_ino
    try:
        if not out.exists():
            new.rename(out)
        elif not exchange(new, out):
            out.rename(work / OLDER)
            new.rename(out)
        sync_folder(out.parent)
    except BaseException:
        # What failed may have been the sync afterwards, with the new export already in place.
        if out.exists() and out.stat().st_ino == written:
            if new.exists():
                exchange(new, out)
            else:
                out.rename(new)
        raise


def _settle(out: Path, new: Path, work: Path) -> None:
    """Puts an earlier export back where none has taken its place, and removes what is left over."""
    older = work / OLDER
    if older.exists() and not out.exists():
        older.rename(out)
    for folder in (new, older):
        shutil.rmtree(folder, ignore_errors=True)


def seal(folder: Path, description: Mapping[str, Any]) -> dict[str, Any]:
    """Writes ``export.json``: the description, size and sha256 of every file; returns its content.

    A sha256 of its own covers the rest of it. The model card is left out: it may be edited.
    """
    files = {name: FileEntry.of_file(folder / name).model_dump() for name in file_names(folder)}
    files.pop(CARD_FILE, None)
    content = {"schema": SCHEMA, **description, "files": files}
    write_file(folder / EXPORT_FILE, [_signed(content)])
    for name in file_names(folder):
        with (folder / name).open("rb+") as file:
            os.fsync(file.fileno())
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            sync_folder(path)
    return content


def _signed(content: Mapping[str, Any]) -> bytes:
    """The bytes of ``export.json``, with the sha256 of what they are without it."""
    digest = hashlib.sha256(readable_json(content, EXPORT_FILE)).hexdigest()
    return readable_json({**content, "sha256": digest}, EXPORT_FILE)


def check_files(folder: Path) -> dict[str, Any]:
    """Compares every file with ``export.json`` and returns that. Raises ExportError, RunDamagedError."""
    path = folder / EXPORT_FILE
    if not path.is_file():
        raise ExportError(
            f"{folder}: holds no {EXPORT_FILE}; write it with: mingle export RUN --to hf --out FOLDER"
        )
    data = path.read_bytes()
    content = read_json(data, path)
    if content.get("schema") != SCHEMA:
        raise ExportError(
            f"{path}: expected schema {SCHEMA}, found {content.get('schema')}; export again with this mingle"
        )
    content.pop("sha256", None)
    if data != _signed(content):
        raise RunDamagedError(f"{path}: altered, its sha256 is that of another content; export again")
    try:
        files = {name: FileEntry.model_validate(stored) for name, stored in content["files"].items()}
    except (KeyError, AttributeError, ValidationError) as error:
        raise RunDamagedError(f"{path}: expected the files with size and sha256; restore it") from error
    outside = [name for name in files if PurePosixPath(name).is_absolute() or ".." in name.split("/")]
    if outside:
        raise RunDamagedError(f"{path}: expected files of this folder, found {outside[0]!r}")
    for name, entry in files.items():
        try:
            found = FileEntry.of_file(folder / name)
        except OSError as error:
            raise RunDamagedError(
                f"{folder / name}: expected a file, found none ({error.strerror})"
            ) from None
        if problem := entry.difference(folder / name, found):
            raise RunDamagedError(problem)
    return content


def file_names(folder: Path) -> list[str]:
    """Every file under a folder by its path inside it, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _require_room(out: Path, *, force: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / EXPORT_FILE).is_file():
        raise ExportError(f"{out}: not an earlier export, so it is left alone; choose another folder")
    if not force:
        raise ExportError(
            f"{out}: already holds an export; replace it with force (--force), or choose another folder"
        )
