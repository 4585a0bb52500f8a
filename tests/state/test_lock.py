import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mingle.errors import RunError, RunLockedError
from mingle.state import RunFolder, lock

from .helpers import append, assert_step, in_child, snapshot, status_of

# Holds the lock from another program until its input ends; needs no torch, so it starts at once.
HOLDER = """
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("lock", sys.argv[1])
lock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lock)
with lock.hold(pathlib.Path(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(run):
    source = Path(lock.__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, lock.__file__, str(run.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(source)},
        text=True,
    )
    with process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.stdin.close()


def test_another_process_keeps_writers_out(run, holder):
    before = snapshot(run.path)
    says = rf"process {holder.pid} on \S+ \(since \d{{4}}-.*\) is writing to this run"
    waiting = lambda: run.lock(0.1).__enter__()  # noqa: E731
    for change, waited in ((run.undo, ""), (lambda: append(run, 3), ""), (waiting, r" \(waited 0.1 s\)")):
        with pytest.raises(RunLockedError, match=f"{says}{waited}; wait"):
            change()
    assert snapshot(run.path) == before
    assert_step(RunFolder.open(run.path), 1, 2)
    assert run.verify() == []


def test_waiting_for_the_lock(run, holder):
    threading.Timer(0.2, holder.stdin.close).start()
    with run.lock(timeout=20):
        append(run, 3)
    assert not (run.path / ".mingle.lock.json").exists()


def test_a_killed_holder_leaves_no_lock(run, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (run.path / ".mingle.lock.json").exists()
    assert_step(append(run, 3), 2, 3)


def test_the_holder_may_enter_again(run):
    with run.lock(), RunFolder.open(run.path).lock():
        longer = append(append(run, 3), 4)
        longer, _ = longer.undo()
        assert status_of(in_child(lambda: append(longer, 5))) == 1
    assert status_of(in_child(lambda: append(longer, 5))) == 0


def test_another_thread_waits_as_another_process_does(run):
    caught = []

    def write():
        try:
            append(run, 3)
        except RunLockedError as error:
            caught.append(error)

    with run.lock():
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    assert len(caught) == 1


def test_the_lock_goes_with_an_error(run):
    with pytest.raises(ZeroDivisionError), run.lock():
        raise ZeroDivisionError
    append(run, 3)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff"])
def test_a_holder_whose_name_cannot_be_read(run, holder, content):
    (run.path / ".mingle.lock.json").write_bytes(content)
    with pytest.raises(RunLockedError, match="another process is writing"):
        append(run, 3)


def test_a_folder_that_cannot_be_locked(run):
    (run.path / ".mingle.lock").unlink()
    (run.path / ".mingle.lock").mkdir()
    with pytest.raises(RunError, match="cannot lock the run"):
        append(run, 3)
