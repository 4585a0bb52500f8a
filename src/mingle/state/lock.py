"""Safe writing: one writer at a time, files that outlast a power cut, a full disk explained.

The operating system holds the lock (``flock``), so it goes when its process does, however that ends. Who
holds it stands in a file of its own, for the error message only: nothing is decided by it.
"""

import ctypes
import errno
import hashlib
import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from mingle.errors import RunError, RunLockedError

LOCK_FILE = ".mingle.lock"
HOLDER_FILE = ".mingle.lock.json"
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2(2)


@contextmanager
def hold(folder: Path, timeout: float = 0) -> Iterator[None]:
    """Hold the lock of the run in ``folder``; a thread that already holds it may enter again.

    ``timeout``: seconds to wait for another writer, less than 0 without end.

    Raises:
        RunLockedError: another process or thread is writing; says who, where and since when.
        RunError: the lock file cannot be created.

    """
    # One lock object per path and thread is what lets the holder enter again through any RunFolder.
    lock = FileLock(folder.resolve() / LOCK_FILE, is_singleton=True)
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        raise RunLockedError(
            f"{folder}: {_holder(folder)} is writing to this run"
            f"{f' (waited {timeout:g} s)' if timeout > 0 else ''}; "
            "wait until that is done, or stop it, and try again"
        ) from None
    except OSError as error:
        raise RunError(
            f"{folder / LOCK_FILE}: cannot lock the run ({error.strerror}); "
            "check that the folder can be written to and that the disk is not full"
        ) from error
    outermost = lock.lock_counter == 1
    try:
        if outermost:
            _sign(folder)
        yield
    finally:
        if outermost:
            _unsign(folder)
        lock.release()


def write_file(path: Path, parts: Iterable[bytes | memoryview]) -> tuple[str, int]:
    """Write a new file that outlasts a power cut (its folder needs `sync_folder` too); raises OSError.

    Returns sha256 and size of what was written. Only one part at a time is held.
    """
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        for part in parts:
            file.write(part)
            digest.update(part)
            size += len(part)
            del part  # before the next one is made
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest(), size


def replace_file(path: Path, data: bytes, writer: str = "") -> None:
    """Put ``data`` in place of the file at ``path`` in one instant; raises OSError.

    ``writer`` keeps several apart that may write the same file at once, without a lock.
    """
    temporary = path.with_name(f".{path.name}{writer}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        write_file(temporary, [data])
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(path: Path) -> None:
    """Make the names in a folder outlast a power cut; raises OSError."""
    if os.name == "nt":
        return  # Windows cannot open a folder to sync it
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder and say so: nothing more can be done there.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def exchange(one: Path, other: Path) -> bool:
    """Swap two names in one instant; False where the system or the file system cannot. Raises OSError."""
    try:
        swap = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False  # Linux alone has it
    if swap(_HERE, os.fsencode(one.absolute()), _HERE, os.fsencode(other.absolute()), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS):
        return False
    raise OSError(number, os.strerror(number), str(one))


@contextmanager
def explained(folder: Path, action: str, kept: str = "the run is as it was") -> Iterator[None]:
    """Turn an OSError into a RunError that says what could not be done in ``folder``, why, what remains."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "free some space" if full else "check the disk and the permissions of the folder"
        raise RunError(
            f"{folder}: could not {action} ({error.strerror or error}); {kept}; {advice} and try again"
        ) from error


def _sign(folder: Path) -> None:
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    # On a full disk the message to others is less precise; the lock holds all the same.
    with suppress(OSError):
        # What lies there may be a link to another file.
        (folder / HOLDER_FILE).unlink(missing_ok=True)
        (folder / HOLDER_FILE).write_text(json.dumps(holder), encoding="utf-8")


def _unsign(folder: Path) -> None:
    with suppress(OSError):
        (folder / HOLDER_FILE).unlink()


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / HOLDER_FILE).read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']} (since {holder['since']})"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"  # it has just come or gone, or could not write its name
