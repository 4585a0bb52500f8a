"""Stops a change at any point of its way to disk."""

import builtins
import errno
import io
import os
import signal
from pathlib import Path

CHANGES = ("fsync", "rename", "replace", "mkdir", "sendfile")
REMOVALS = ("unlink", "rmdir")
SPACE = {"open", "write", "mkdir", "fsync", "sendfile"}
"""Kinds of points that a full disk refuses; names can still be changed and removed."""


class Interruption:
    """Counts the points at which a change can fail and calls ``stop`` at the one with number ``at``.

    ``removals``: removing a file is such a point too. ``lasting``: later points that need space stop as well.
    """

    def __init__(self, monkeypatch, stop=None, at=None, *, removals=False, lasting=False):
        self.points, self.stop, self.at, self.lasting = [], stop, at, lasting
        self.patch = monkeypatch
        for name in (*CHANGES, *(REMOVALS if removals else ())):
            self.watch(os, name)
        opened = self.opened(io.open)
        for module in (io, builtins):
            monkeypatch.setattr(module, "open", opened)

    def watch(self, module, name):
        """The function of that name is a point."""
        self.patch.setattr(module, name, self.before(name, getattr(module, name)))

    def reach(self, kind, name):
        self.points.append((kind, name))
        if len(self.points) == self.at or (
            self.lasting and self.at is not None and len(self.points) > self.at and kind in SPACE
        ):
            self.stop()

    def before(self, kind, function):
        def interrupted(target, *rest, **options):
            if kind == "mkdir" and Path(target).is_dir():
                return function(target, *rest, **options)
            where = f"/proc/self/fd/{target}" if isinstance(target, int) else target
            self.reach(kind, Path(os.path.realpath(where)).name)
            result = function(target, *rest, **options)
            # A rename that fails once it has happened, as over a network
            if kind in ("rename", "replace", "exchange"):
                self.reach(f"after {kind}", Path(target).name)
            return result

        return interrupted

    def opened(self, function):
        def opened(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, **options):
            # Who holds the lock is written down for a message only; failing there stops nothing.
            named = isinstance(file, str | os.PathLike) and not Path(file).name.startswith(".mingle.lock")
            if not named or not set("wxa") & set(mode) or "+" in mode:
                return function(file, mode, buffering, encoding, errors, newline, **options)
            self.reach("open", Path(file).name)
            raw = _Raw(file, mode.replace("b", "").replace("t", ""), **options)
            raw.reach = self.reach
            whole = raw if buffering == 0 else io.BufferedWriter(raw)
            return whole if "b" in mode else io.TextIOWrapper(whole, encoding, errors, newline)

        return opened


class ShortWriteError(Exception):
    """The system has written a part only, and says so."""


class _Raw(io.FileIO):
    """A file that has written half of what it was given when the interruption comes."""

    def write(self, data):
        data = memoryview(data).cast("B")
        half = len(data) // 2
        done = super().write(data[:half])
        try:
            self.reach("write", Path(self.name).name)
        except ShortWriteError:
            if done:
                return done
        return done + super().write(data[done:])


def fail(number):
    def stop():
        raise OSError(number, os.strerror(number))

    return stop


def interrupt():
    raise KeyboardInterrupt


def write_short():
    raise ShortWriteError


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


FULL, BROKEN = fail(errno.ENOSPC), fail(errno.EIO)
