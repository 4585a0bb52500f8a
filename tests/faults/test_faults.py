"""A seeded sample of the faults; ``python -m tests.faults --all`` injects every one of them."""

import random

import pytest

from tests.faults.changes import World, changes
from tests.faults.inject import FAULTS, inject, places, points_of

# A fork that computes with one thread needs none of those that torch has started.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

NAMES = tuple(name for name in changes(World(None)) if "onnx" not in name)
"""Tracing takes seconds: ONNX is left to the harness."""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return changes(World(tmp_path_factory.mktemp("faults")))


@pytest.mark.parametrize("name", NAMES)
def test_after_any_fault_the_state_is_whole_and_the_next_change_works(found, name, tmp_path):
    change = found[name]
    points = points_of(change, tmp_path / "points")
    rng = random.Random(name)
    for kind in rng.sample(sorted(FAULTS), 2):
        assert inject(change, kind, rng.choice(places(kind, points)), tmp_path / "fault")


def test_who_held_the_lock_is_in_no_export(found, tmp_path):
    """The names of process and machine would leave with it."""
    change = found["export hf"]
    points = points_of(change, tmp_path / "points")
    removals = [at for at, point in enumerate(points, start=1) if point == ["unlink", ".mingle.lock.json"]]
    assert len(removals) > 3
    for at in removals:
        assert inject(change, "broken", at, tmp_path / "fault")


@pytest.mark.parametrize("name", ["add mingle", "undo average", "export merged --force", "results"])
def test_every_file_that_a_change_writes_is_a_point_of_failure(found, name, tmp_path):
    """Otherwise a writer that goes its own way would never be interrupted."""
    change = found[name]
    change.prepare(tmp_path / "before")
    points = points_of(change, tmp_path / "points")
    old = {path.relative_to(tmp_path / "before") for path in (tmp_path / "before").rglob("*")}
    new = {
        path.name
        for path in (tmp_path / "points").rglob("*")
        if path.is_file() and path.relative_to(tmp_path / "points") not in old
    }
    reached = {place for kind, place in points if kind in ("write", "sendfile", "after replace")}
    assert {file for file in new if not file.startswith(".mingle.lock")} <= reached


@pytest.mark.parametrize("kind", ["kill", "broken"])
def test_the_harness_sees_a_change_that_is_not_whole(found, kind, tmp_path, monkeypatch):
    """A manifest that is written in place is half written at some point."""

    def in_place(path, data, writer=""):
        with path.open("wb") as file:
            file.write(data)

    monkeypatch.setattr("mingle.state.run_folder.replace_file", in_place)
    change = found["undo average"]
    points = points_of(change, tmp_path / "points")
    with pytest.raises(Exception, match=r"mingle\.json|exit 5"):
        inject(change, kind, points.index(["write", "mingle.json"]) + 1, tmp_path / "fault")
