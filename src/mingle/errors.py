"""Everything that can go wrong, as one tree.

::

    MingleError
    ├── ConfigError            an option, preset or configuration file is wrong
    │   └── UnknownNameError   no method, backbone, suite or task of that name
    ├── CheckpointError        a checkpoint cannot be read
    │   └── MismatchError      a checkpoint does not fit the base (lists every mismatch)
    ├── DivergedError          a computation left the finite numbers
    ├── SeedsError             seed samples are missing, empty or of the wrong shape
    ├── ExportError            a run cannot be written in a form, or a folder or repository cannot take it
    └── RunError               a run folder cannot be created, opened or changed
        ├── RunLockedError     another process is writing
        ├── RunDamagedError    a file is missing, truncated or altered
        ├── RunSchemaError     written by a newer version of mingle
        └── TaskExistsError    the run already holds a task of that name

Each message is one line: what, where, what was expected, what was found, what to do.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class MingleError(Exception):
    """Base of every error that mingle raises on purpose."""


class ConfigError(MingleError):
    """An option, a preset or a configuration file is wrong."""


class UnknownNameError(ConfigError):
    """A name that nothing is registered under; the message offers the nearest known ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
        super().__init__(f"unknown {kind} {name!r}; {hint}")


class CheckpointError(MingleError):
    """A checkpoint cannot be read."""


class MismatchError(CheckpointError):
    """A checkpoint does not fit the base; ``problems`` holds one line per mismatch."""

    def __init__(self, source: str, problems: list[str]) -> None:
        self.problems = problems
        noun = "mismatch" if len(problems) == 1 else "mismatches"
        lines = "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(
            f"{source}: {len(problems)} {noun} with the base; merge only checkpoints that were "
            f"fine-tuned from it:\n{lines}"
        )


class DivergedError(MingleError):
    """A computation left the finite numbers."""


class SeedsError(MingleError):
    """Seed samples are missing, empty or of the wrong shape."""


class SeedsWarning(UserWarning):
    """Seed samples do not look like those of the checkpoint's task; they were used all the same."""


class ExportError(MingleError):
    """A run cannot be written in a form, or a folder or repository cannot take it."""


class RunError(MingleError):
    """A run folder cannot be created, opened or changed."""


class RunLockedError(RunError):
    """Another process is writing to the run."""


class RunDamagedError(RunError):
    """A file of the run is missing, truncated or altered."""


class RunSchemaError(RunError):
    """The run was written by a newer version of mingle."""


class TaskExistsError(RunError):
    """The run already holds a task of that name."""


REASON_LIMIT = 300


@contextmanager
def translated(kind: type[MingleError], what: str, passing: type[Exception] = MingleError) -> Iterator[None]:
    """Turns whatever a library makes of values from elsewhere into one line of ``kind`` that begins ``what``.

    Errors of ours pass, and those of kind ``passing``. Panics of libraries in Rust, which are no Exceptions,
    do not.
    """
    try:
        yield
    except (MingleError, passing):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        reason = " ".join(str(error).split())
        # The text of a KeyError is the key alone.
        named = f"{type(error).__name__} {reason}" if isinstance(error, LookupError) or not reason else reason
        raise kind(f"{what} ({named[:REASON_LIMIT]})") from error
