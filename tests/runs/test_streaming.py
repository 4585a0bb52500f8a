"""Data-free methods work from disk to disk, one tensor at a time."""

import weakref

import pytest
import torch
from safetensors.torch import load_file

import mingle
from mingle.errors import DivergedError
from mingle.methods import METHODS, Arrival
from mingle.methods.base_streaming import StreamingMethod
from mingle.weights import Entry

QUICK = {"steps": 2}
NAMES = [name for name in METHODS.names() if issubclass(METHODS.get(name), StreamingMethod)]


def start(path, zoo, name, **changes):
    fields = METHODS.get(name).options_type.model_fields
    options = {key: value for key, value in QUICK.items() if key in fields} | changes
    return mingle.MergeRun.create(path, zoo / "base", method=name, options=options)


class Watch:
    """Says which tensors of any checkpoint are alive whenever another one is read."""

    def __init__(self, patch):
        self.alive, self.reads = [], 0
        patch.setattr(Entry, "read", self.around(Entry.read))

    def around(self, read):
        def watched(entry):
            name = entry.stored_name
            self.alive = [(other, ref) for other, ref in self.alive if ref() is not None]
            assert {other for other, _ in self.alive} <= {name}
            tensor = read(entry)
            self.alive.append((name, weakref.ref(tensor)))
            self.reads += 1
            return tensor

        return watched


@pytest.mark.parametrize("name", [*NAMES, "individual"])
def test_no_two_tensors_of_a_checkpoint_are_held_together(tmp_path, zoo, name, monkeypatch):
    watch = Watch(monkeypatch)
    run = start(tmp_path / "run", zoo, name)
    for task in ("task1", "task2"):
        before = watch.reads
        run.add(zoo / task)
        # Far more reads than tensors: the check and the merge both see all of them.
        assert watch.reads > before + 2 * len(run.base.checkpoint.entries)
    # Nothing was put aside: the base as a whole is only loaded for a model.
    assert "tensors" not in vars(run.base)


def test_the_watch_sees_a_method_that_holds_on(zoo, base, monkeypatch):
    Watch(monkeypatch)
    with pytest.raises(AssertionError):
        dict(base.checkpoint.tensors())


@pytest.mark.parametrize("name", NAMES)
def test_a_run_holds_the_bits_that_merging_in_memory_gives(tmp_path, zoo, name):
    run = start(tmp_path / "run", zoo, name)
    state = run.state
    for number, task in enumerate(("task1", "task2"), start=1):
        stored = run.add(zoo / task)
        state = run.method.update(state, Arrival(task, run.backbone.open(zoo / task), seed=42))
        file = load_file(next((tmp_path / "run/steps").glob(f"{number:04d}-*")) / "weights.safetensors")
        assert stored.tensors["weights"].keys() == file.keys() == run.base.checkpoint.entries.keys()
        for tensor, values in state.steps[-1].tensors["weights"].items():
            assert torch.equal(file[tensor], values)
            assert torch.equal(stored.tensors["weights"][tensor], values)
    assert run.verify() == []


def test_a_step_that_is_asked_for_twice_is_merged_once(zoo, base):
    merged = []

    class Counted(METHODS.get("average")):
        def merge(self, base, merged_before, new, t):
            merged.append(t)
            return super().merge(base, merged_before, new, t)

    method = Counted.with_preset()
    state = method.init(base)
    for task in ("task1", "task2"):
        state = method.update(state, Arrival(task, base.backbone.open(zoo / task)))
    assert merged == []
    first, second = (dict(state.steps[-1].tensors["weights"]) for _ in range(2))
    assert merged.count(1) == merged.count(2) == len(first)
    assert all(first[name] is second[name] for name in first)


def test_a_merge_that_diverges_leaves_the_run_as_it_was(tmp_path, zoo):
    run = start(tmp_path / "run", zoo, "wudi", lr=1e300)
    run.add(zoo / "task1")
    before = run.path.joinpath("mingle.json").read_bytes()
    with pytest.raises(DivergedError, match=r"task 'task2'.*non-finite"):
        run.add(zoo / "task2")
    assert run.path.joinpath("mingle.json").read_bytes() == before
    assert run.verify() == []
    assert run.tasks == ("task1",)
    assert [path.name for path in (run.path / "steps").iterdir()] == ["0001-task1"]


def test_seconds_of_a_step_are_those_of_the_merging(tmp_path, zoo, monkeypatch):
    """Tensors are merged while they are written, after `update` has returned."""
    method = METHODS.get("average")
    clock = [0.0]
    merge = method.merge

    def slow(self, *versions):
        clock[0] += 1.0
        return merge(self, *versions)

    monkeypatch.setattr(method, "merge", slow)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    run = start(tmp_path / "run", zoo, "average")
    run.add(zoo / "task1")
    assert run.info("task1")["seconds"] == len(run.base.checkpoint.entries)


def test_opcm_continues_after_reopening_from_what_the_step_holds(tmp_path, zoo):
    whole = start(tmp_path / "whole", zoo, "opcm")
    for task in ("task1", "task2", "task3"):
        whole.add(zoo / task)
        parts = (
            mingle.MergeRun.open(tmp_path / "parts")
            if (tmp_path / "parts").exists()
            else start(tmp_path / "parts", zoo, "opcm")
        )
        parts.add(zoo / task)
    one, two = (load_file(tmp_path / f"{x}/steps/0003-task3/weights.safetensors") for x in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert parts.info("task3")["report"].keys() == {"lambda", "mean_norm"}
