"""Eight processes at once on one run: no step is lost, nothing is read torn, who cannot go on is told why."""

import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest

from mingle.errors import RunDamagedError, RunError, RunLockedError
from mingle.state import RunFolder

from .helpers import HEADER, append, assert_step, in_child, info_of, status_of

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

PROCESSES, ROUNDS = 8, 12
CHANGED = "changed by another process; open it again"


def read_whole(path):
    """Every step holds what its name says; returns the names."""
    run = RunFolder.open(path)
    for index, step in enumerate(run.manifest.steps):
        assert_step(run, index, int(step.name.removeprefix("task")))
    return [step.name for step in run.manifest.steps]


def one_round(path, number, rng, diary):
    """Adds, undoes, reads or verifies; changes that were committed are written down."""
    kind = rng.choice(["add", "add", "wait and add", "undo", "read", "verify"])
    if kind == "read":
        read_whole(path)
    elif kind == "verify":
        assert RunFolder.open(path).verify() == []
    elif kind == "undo":
        _, entry = RunFolder.open(path).undo()
        diary.append(("undo", entry.name))
    elif kind == "add":
        append(RunFolder.open(path), number)
        diary.append(("add", f"task{number}"))
    else:
        with RunFolder.open(path).lock(timeout=60):
            append(RunFolder.open(path), number)
        diary.append(("add", f"task{number}"))


def worker(path, who, start, diary_file):
    rng, diary, refused = random.Random(who), [], []
    while not start.exists():
        time.sleep(0.001)
    for count in range(ROUNDS):
        try:
            one_round(path, 1000 * who + count, rng, diary)
        except RunLockedError as error:
            assert f"process {os.getpid()} " not in str(error)  # noqa: PT017
            refused.append(str(error))
        except RunDamagedError:
            raise
        except RunError as error:
            refused.append(str(error))
    diary_file.write_text(json.dumps({"done": diary, "refused": refused}))


def test_eight_processes_lose_no_step_and_read_none_torn(tmp_path):
    path, start = tmp_path / "run", tmp_path / "start"
    RunFolder.create(path, HEADER)
    diaries = [tmp_path / f"{who}.json" for who in range(PROCESSES)]
    children = [
        in_child(lambda who=who: worker(path, who, start, diaries[who])) for who in range(1, PROCESSES)
    ]
    start.touch()
    worker(path, 0, start, diaries[0])
    assert [status_of(child) for child in children] == [0] * (PROCESSES - 1)
    told = [json.loads(diary.read_text()) for diary in diaries]
    done = [tuple(entry) for diary in told for entry in diary["done"]]
    added = [name for kind, name in done if kind == "add"]
    undone = [name for kind, name in done if kind == "undo"]
    assert len(set(added)) == len(added)
    assert len(set(undone)) == len(undone)
    left = read_whole(path)
    assert set(left) == set(added) - set(undone)
    assert len(added) >= PROCESSES
    assert RunFolder.open(path).verify() == []
    for message in (message for diary in told for message in diary["refused"]):
        expected = (CHANGED, "is writing to this run; wait", "there is nothing to undo")
        assert any(text in message for text in expected), message
    assert sorted(item.name for item in (path / "steps").iterdir()) == sorted(
        f"{number:04d}-{name}" for number, name in enumerate(left, start=1)
    )


def test_verify_takes_an_undo_in_the_meantime_for_no_damage(run, monkeypatch):
    load = type(run.manifest).load
    undone = []

    def undo_behind_its_back(folder):
        manifest = load(folder)
        if not undone:
            undone.append(True)
            RunFolder(folder, manifest).undo()
        return manifest

    monkeypatch.setattr("mingle.state.run_folder.Manifest.load", undo_behind_its_back)
    assert run.verify() == []
    assert undone


def replace_step(run):
    """Another process undoes the newest step and adds one of the same name and shapes."""
    shorter, _ = RunFolder.open(run.path).undo()
    shorter.append("task2", {"experts": {"a": other_values()}}, info_of(7))


def other_values():
    import torch

    return torch.full((1000,), 7.0)


@pytest.mark.parametrize("moment", ["check", "layout", "open"])
def test_a_step_that_is_replaced_while_it_is_read_is_never_read_torn(run, monkeypatch, moment):
    """The file is swapped right after its hash was taken, its header read, or before its bytes are."""
    from mingle.state import tensor_file

    swapped = []

    def swap():
        if not swapped:
            swapped.append(True)
            replace_step(run)

    def then_swap(function):
        def wrapped(*given, **options):
            result = function(*given, **options)
            swap()
            return result

        return wrapped

    tensors = run.read(1, "experts") if moment == "open" else None
    if moment == "check":
        monkeypatch.setattr(RunFolder, "_check", then_swap(RunFolder._check))
    elif moment == "layout":
        monkeypatch.setattr(tensor_file, "_layout", then_swap(tensor_file._layout))
    else:
        stamp = tensor_file._stamp

        def stamped(path):
            found = stamp(path)
            swap()
            return found

        monkeypatch.setattr(tensor_file, "_stamp", stamped)
    with pytest.raises(RunError, match=CHANGED):
        _ = (tensors if tensors is not None else run.read(1, "experts"))["layer2.A"]
    assert swapped


def test_info_is_read_and_checked_in_one(run, monkeypatch):
    read_bytes = Path.read_bytes

    def swap_after(path):
        data = read_bytes(path)
        if path.name == "step.json":
            monkeypatch.setattr(Path, "read_bytes", read_bytes)
            shutil.copy(run.path / "steps/0001-task1/step.json", path)
        return data

    monkeypatch.setattr(Path, "read_bytes", swap_after)
    assert run.info(1) == info_of(2)
    with pytest.raises(RunDamagedError, match=r"step\.json"):
        run.info(1)
