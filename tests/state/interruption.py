"""Stops a change at any point of its way to disk."""

import os
import signal
from pathlib import Path


class Interruption:
    """Counts the points at which a change can fail and calls ``stop`` at the one with number ``at``."""

    def __init__(self, monkeypatch, stop=None, at=None):
        self.points, self.stop, self.at = [], stop, at
        for name in ("fsync", "rename", "replace", "mkdir"):
            monkeypatch.setattr(os, name, self.before(name, getattr(os, name)))
        monkeypatch.setattr(Path, "open", self.half_written(Path.open))

    def reach(self, point):
        self.points.append(point)
        if len(self.points) == self.at:
            self.stop()

    def before(self, name, function):
        def interrupted(target, *rest, **options):
            if name == "mkdir" and Path(target).is_dir():
                return function(target, *rest, **options)
            where = f"/proc/self/fd/{target}" if isinstance(target, int) else target
            self.reach((name, Path(os.path.realpath(where)).name))
            result = function(target, *rest, **options)
            # A rename that fails once it has happened, as over a network
            if name in ("rename", "replace"):
                self.reach((f"after {name}", Path(target).name))
            return result

        return interrupted

    def half_written(self, function):
        def opened(path, mode="r", *rest, **options):
            # Who holds the lock is written down for a message only; failing there stops nothing.
            if ("x" in mode or "w" in mode) and not path.name.startswith(".mingle.lock"):
                self.reach(("open", path.name))
                return _Half(function(path, mode, *rest, **options), lambda: self.reach(("write", path.name)))
            return function(path, mode, *rest, **options)

        return opened


class _Half:
    """A file that has written half of what it was given when the interruption comes."""

    def __init__(self, file, reach):
        self.file, self.reach = file, reach

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        self.reach()
        self.file.write(data[len(data) // 2 :])

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


def fail(number):
    def stop():
        raise OSError(number, os.strerror(number))

    return stop


def interrupt():
    raise KeyboardInterrupt


def kill():
    os.kill(os.getpid(), signal.SIGKILL)
