"""Whatever stops a change, and wherever: the previous state is there, whole, and the next change works."""

import errno
import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest

from mingle.errors import RunError
from mingle.state import RunFolder
from mingle.state import lock as writing

from .helpers import HEADER, append, assert_step, in_child, snapshot, status_of
from .interruption import Interruption, fail, interrupt, kill

# A fork that only appends small steps needs none of the threads that torch has started.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def change(kind, run):
    return append(run, 3) if kind == "append" else run.undo()[0]


def count(kind, path):
    run = RunFolder.create(path, HEADER)
    run = append(append(run, 1), 2)
    with pytest.MonkeyPatch.context() as patch:
        points = Interruption(patch)
        change(kind, run)
    return points.points


@pytest.mark.parametrize("kind", ["append", "undo"])
@pytest.mark.parametrize(
    ("stop", "raised", "says"),
    [
        (fail(errno.ENOSPC), RunError, "No space left on device.*the run is as it was; free some space"),
        (fail(errno.EIO), RunError, "Input/output error.*the run is as it was; check the disk"),
        (interrupt, KeyboardInterrupt, None),
    ],
    ids=["full", "broken", "interrupted"],
)
def test_a_failure_at_any_point_leaves_the_previous_state(tmp_path, run, kind, stop, raised, says):
    before = snapshot(run.path)
    points = count(kind, tmp_path / "count")
    assert len(points) > (15 if kind == "append" else 5)
    for at in range(1, len(points) + 1):
        with pytest.MonkeyPatch.context() as patch:
            Interruption(patch, stop, at)
            with pytest.raises(raised, match=says):
                change(kind, run)
        assert snapshot(run.path) == before, points[at - 1]
        assert {path.name for path in (run.path / "steps").iterdir()} == {"0001-task1", "0002-task2"}
        again = RunFolder.open(run.path)
        assert again == run
        assert again.verify() == []
    assert change(kind, run).verify() == []


def test_a_failure_before_the_first_step(tmp_path):
    run = RunFolder.create(tmp_path / "run", HEADER)
    before = snapshot(run.path)
    with pytest.MonkeyPatch.context() as patch:
        Interruption(patch, fail(errno.ENOSPC), at=1)
        with pytest.raises(RunError, match="free some space"):
            append(run, 1)
    assert snapshot(run.path) == before
    assert not (run.path / "steps").exists()
    assert_step(append(run, 1), 0, 1)


@pytest.mark.parametrize("kind", ["append", "undo"])
def test_a_kill_at_any_point_leaves_the_state_before_or_after(tmp_path, run, kind):
    points = count(kind, tmp_path / "count")
    after = RunFolder.open(tmp_path / "count").manifest.steps
    for at in range(1, len(points) + 1):

        def work(at=at):
            Interruption(pytest.MonkeyPatch(), kill, at)
            change(kind, run)

        assert status_of(in_child(work)) == -signal.SIGKILL
        again = RunFolder.open(run.path)
        assert again.verify() == []
        committed = ("replace", ".mingle.json.tmp") in points[: at - 1]
        assert again.manifest.steps == (after if committed else run.manifest.steps), points[at - 1]
        for index, step in enumerate(again.manifest.steps):
            assert_step(again, index, int(step.name.removeprefix("task")))
        if committed:
            undone = again.undo()[0] if kind == "append" else append(again, 2)
            assert undone == run
    assert_step(append(RunFolder.open(run.path), 9), 2, 9)
    assert not [name for name in snapshot(run.path) if "tmp" in name]


def test_create_fails_without_a_run_and_can_be_tried_again(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        points = Interruption(patch)
        RunFolder.create(tmp_path / "count", HEADER)
    for at in range(1, len(points.points) + 1):
        for number, stop in enumerate((fail(errno.ENOSPC), kill)):
            path = tmp_path / f"{at}-{number}"

            def work(stop=stop, path=path, at=at):
                Interruption(pytest.MonkeyPatch(), stop, at)
                RunFolder.create(path, HEADER)

            assert status_of(in_child(work)) == (-signal.SIGKILL if stop is kill else 1)
            # Only a kill after the last rename leaves a run, and that one is complete.
            if stop is not kill or not (path / "mingle.json").exists():
                RunFolder.create(path, HEADER)
            assert RunFolder.open(path).manifest.header == HEADER


def test_a_disk_that_keeps_failing_leaves_a_whole_run(run, monkeypatch):
    replaced = []

    def replace(self, target, whole=Path.replace):
        whole(self, target)
        replaced.append(target)

    def fsync(descriptor, whole=os.fsync):
        if replaced:
            raise OSError(errno.EIO, "Input/output error")
        whole(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(RunError, match="may keep the change or not; the run is whole either way"):
            append(run, 3)
    again = RunFolder.open(run.path)
    assert again.verify() == []
    assert_step(again, 2, 3)


def test_a_lock_that_cannot_say_who_holds_it_still_holds(run, monkeypatch):
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: fail(errno.ENOSPC)())
    with run.lock():
        assert not (run.path / ".mingle.lock.json").exists()
        assert status_of(in_child(lambda: append(run, 3))) == 1
    assert_step(append(run, 3), 2, 3)


def test_a_file_system_that_cannot_sync_a_folder_is_good_enough(run, monkeypatch):
    def fsync(descriptor, whole=os.fsync):
        if Path(f"/proc/self/fd/{descriptor}").resolve().is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")
        whole(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert_step(append(run, 3), 2, 3)


def test_everything_is_synced_before_the_manifest_names_it(tmp_path):
    """What a power cut could tear apart if the order were another."""
    points = [
        point for point in count("append", tmp_path / "run") if point[0] in ("fsync", "rename", "replace")
    ]
    assert points == [
        ("fsync", "experts.safetensors"),
        ("fsync", "gates.safetensors"),
        ("fsync", "step.json"),
        ("fsync", ".tmp-0003-task3"),
        ("rename", ".tmp-0003-task3"),
        ("fsync", "steps"),
        ("fsync", "run"),
        ("fsync", ".mingle.json.tmp"),
        ("replace", ".mingle.json.tmp"),
        ("fsync", "run"),
    ]


def test_a_write_that_the_kernel_refuses(run):
    """A limit on the size of files stands in for a full disk: the kernel itself writes only a part."""
    before = snapshot(run.path)
    largest = max(len(data) for name, data in before.items() if name != "mingle.json")
    for limit in (0, 1, 64, largest - 1, len(before["mingle.json"])):

        def work(limit=limit):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            with pytest.raises(RunError, match=r"File too large.*the run is as it was"):
                append(run, 3)

        assert status_of(in_child(work)) == 0
        assert snapshot(run.path) == before
    assert_step(append(run, 3), 2, 3)


def test_a_process_killed_at_random_moments(tmp_path):
    path = tmp_path / "run"
    RunFolder.create(path, HEADER)
    rng = random.Random(0)

    def work(report):
        run = RunFolder.open(path)
        while True:
            run = append(run, len(run.manifest.steps))
            os.write(report, b".")
            if len(run.manifest.steps) % 3 == 0:
                run, _ = run.undo()
                run = append(run, len(run.manifest.steps))

    for _ in range(10):
        reports, report = os.pipe()
        pid = in_child(lambda report=report: work(report))
        os.close(report)
        # However slow the machine is, a step has been written before the blow falls.
        assert os.read(reports, 1) == b"."
        time.sleep(rng.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)
        assert status_of(pid) == -signal.SIGKILL
        os.close(reports)
        run = RunFolder.open(path)
        assert run.verify() == []
        for index in range(len(run.manifest.steps)):
            assert_step(run, index, index)
    assert run.manifest.steps
    assert_step(append(run, 1000), len(run.manifest.steps), 1000)
    assert not [name for name in snapshot(path) if "tmp" in name]


def test_the_injection_reaches_the_code_it_is_meant_for(tmp_path):
    """Otherwise a rewrite could leave the tests above without a single failure to survive."""
    points = count("append", tmp_path / "run")
    written = {name for kind, name in points if kind == "write"}
    assert written == {"experts.safetensors", "gates.safetensors", "step.json", ".mingle.json.tmp"}
    assert {kind for kind, _ in points} >= {"open", "write", "fsync", "mkdir", "rename", "replace"}
    assert writing.os is os
