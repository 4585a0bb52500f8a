"""One fault at one point of a change, in a process of its own, and what has to hold afterwards."""

import json
import os
import shutil
import signal
import tempfile
import traceback
from dataclasses import dataclass

import pytest

from mingle.errors import MingleError
from tests.state.helpers import in_child, status_of
from tests.state.interruption import BROKEN, FULL, Interruption, interrupt, kill, write_short

EITHER = "whole either way"
"""What the error says where a disk that fails on and on may have kept the change or not."""
REFUSED, INTERRUPTED, CRASHED = 3, 4, 5
"""Exit statuses of a change that failed: with an error of ours, by Ctrl-C, with any other."""


@dataclass(frozen=True)
class Fault:
    """What happens; ``lasting``: at every later point that needs space too."""

    stop: object
    lasting: bool = False


FAULTS = {
    "kill": Fault(kill),
    "full": Fault(FULL, lasting=True),
    "broken": Fault(BROKEN),
    "interrupt": Fault(interrupt),
    "short write": Fault(write_short),
}


def points_of(change, folder):
    """The points at which the change can fail."""
    assert change.after is not None  # everything is made that is made once
    change.prepare(folder)
    ending = _act(change, folder)
    assert ending.status == 0, ending.told
    return json.loads(ending.told)


def places(kind, points):
    """Numbers of the points where a fault can strike; a short write is one of a file, and no error."""
    return [at for at, point in enumerate(points, start=1) if kind != "short write" or point[0] == "write"]


@dataclass(frozen=True)
class Ending:
    """How the process of a change ended and what it said."""

    status: int
    told: str
    struck: bool


def _act(change, folder, fault=None, at=None):
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as struck:

        def stop():
            os.write(struck.fileno(), b"!")
            fault.stop()

        def work():
            points = Interruption(
                pytest.MonkeyPatch(),
                fault and stop,
                at,
                removals=True,
                lasting=bool(fault and fault.lasting),
            )
            for module, name in change.watched:
                points.watch(module, name)
            try:
                change.act(folder)
                os.write(said.fileno(), json.dumps(points.points).encode())
            except MingleError as error:
                os.write(said.fileno(), str(error).encode())
                os._exit(REFUSED)
            except KeyboardInterrupt:
                os._exit(INTERRUPTED)
            except BaseException:
                os.write(said.fileno(), traceback.format_exc().encode())
                os._exit(CRASHED)

        status = status_of(in_child(work))
        for file in (said, struck):
            file.seek(0)
        return Ending(status, said.read().decode(), bool(struck.read()))


def inject(change, kind, at, folder):
    """Lets the fault strike point ``at`` of the change in a new folder, and checks what it left.

    Returns whether it struck. Raises AssertionError.
    """
    fault = FAULTS[kind]
    change.prepare(folder)
    try:
        ending = _act(change, folder, fault, at)
        if not ending.struck:
            return False
        _check(change, folder, fault, ending)
        meaning = change.proceed(folder)
        found, state = change.look(folder)
        assert found == meaning, "the next change does not lead where it should"
        assert change.leftovers(folder, state) == []
        return True
    finally:
        shutil.rmtree(folder)


def _check(change, folder, fault, ending):
    """The state is the one before or the one after, whole; an error means the one before."""
    assert ending.status in {
        kill: (-signal.SIGKILL,),
        interrupt: (0, INTERRUPTED),
        write_short: (0,),
    }.get(fault.stop, (0, REFUSED)), f"exit {ending.status}: {ending.told}"
    found = change.look(folder)
    if found[1] == change.before[1]:
        assert ending.status != 0, "it said it was done, and nothing has changed"
        return
    # Who is stopped from outside says nothing about the change; it may have happened already.
    stopped = ending.status in (-signal.SIGKILL, INTERRUPTED)
    assert ending.status == 0 or stopped or EITHER in ending.told, f"failed, but not undone: {ending.told}"
    assert found[0] == change.after, "the state is neither the one before nor the one after"
