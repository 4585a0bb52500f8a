"""Files that are written and read one tensor at a time are the format's own, byte for byte."""

import os
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from mingle.errors import RunDamagedError, RunError
from mingle.state import RunFolder
from mingle.state.tensor_file import DTYPES, encode_tensors, open_tensors
from mingle.weights import LazyTensors, Spec

SHAPES = [(), (0,), (1,), (3,), (2, 3), (2, 0, 4)]
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=6).filter(
    lambda name: name != "__metadata__"
)


def made(shape, dtype):
    return torch.arange(torch.Size(shape).numel()).reshape(shape).to(torch.float32).to(dtype)


def lazy(tensors, make=None):
    specs = {name: Spec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    return LazyTensors(specs, make or tensors.__getitem__)


@given(st.dictionaries(names, st.tuples(st.sampled_from(SHAPES), st.sampled_from(list(DTYPES))), max_size=6))
def test_the_bytes_are_those_of_safetensors(content):
    tensors = {name: made(*what) for name, what in content.items()}
    expected = save(dict(sorted(tensors.items())))
    assert b"".join(encode_tensors(tensors, "x")) == expected
    assert b"".join(encode_tensors(lazy(tensors), "x")) == expected


def test_every_dtype_has_the_place_that_the_format_gives_it():
    tensors = {f"t{i}": made((2,), dtype) for i, dtype in enumerate(DTYPES)}
    assert b"".join(encode_tensors(tensors, "x")) == save(tensors)


def test_a_lazy_file_holds_one_tensor_at_a_time(tmp_path):
    alive = []

    def make(name):
        assert [ref for ref in alive if ref() is not None] == []
        tensor = torch.full((50,), float(name))
        alive.append(weakref.ref(tensor))
        return tensor

    tensors = lazy({str(i): torch.empty(50) for i in range(8)}, make)
    run = RunFolder.create(tmp_path / "run", {}).append("task", {"weights": tensors}, {})
    assert len(alive) == 8
    assert run.verify() == []
    found = load_file(tmp_path / "run/steps/0001-task/weights.safetensors")
    assert {name: float(tensor.mean()) for name, tensor in found.items()} == {
        str(i): float(i) for i in range(8)
    }


def test_reading_keeps_nothing(run):
    tensors = run.read(0, "experts")
    gone = [weakref.ref(tensors[name]) for name in tensors]
    assert [ref() for ref in gone] == [None] * 4
    tensors["layer2.A"].zero_()
    assert tensors["layer2.A"].any()


def test_what_is_remembered_is_made_once_and_streaming_remembers_nothing():
    calls = []

    def make(name):
        calls.append(name)
        return torch.zeros(1)

    tensors = LazyTensors({name: Spec((1,), torch.float32) for name in "ba"}, make, keep=True)
    assert list(tensors) == ["a", "b"]
    tensors.stream("a")
    tensors.stream("a")
    assert tensors["b"] is tensors["b"] is tensors.stream("b")
    assert calls == ["a", "a", "b"]
    with pytest.raises(KeyError):
        tensors["c"]


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(2, dtype=torch.float64)])
def test_a_tensor_that_is_not_what_was_announced_is_refused(tmp_path, wrong):
    run = RunFolder.create(tmp_path / "run", {})
    with pytest.raises(RunError, match=r"w.safetensors: expected named dense tensors, found.*was announced"):
        run.append("task", {"w": lazy({"a": torch.zeros(2)}, lambda _: wrong)}, {})
    assert not list((tmp_path / "run/steps").iterdir())


def test_an_error_while_a_tensor_is_made_leaves_the_run_as_it_was(run):
    def make(name):
        raise ZeroDivisionError(name)

    before = run.manifest
    with pytest.raises(ZeroDivisionError, match="a"):
        run.append("task3", {"w": lazy({"a": torch.zeros(2)}, make)}, {})
    assert {path.name for path in (run.path / "steps").iterdir()} == {"0001-task1", "0002-task2"}
    assert RunFolder.open(run.path).manifest == before


def test_info_may_be_known_only_when_the_tensors_are_written(tmp_path):
    order = []

    def make(name):
        order.append(name)
        return torch.zeros(2)

    def info():
        order.append("info")
        return {"seconds": 1.5}

    run = RunFolder.create(tmp_path / "run", {})
    run = run.append("task", {"w": lazy({"a": torch.zeros(2)}, make)}, info)
    assert order == ["a", "info"]
    assert run.info(0) == {"seconds": 1.5}


def test_a_file_is_checked_once_and_again_only_when_it_changes(run):
    path = run.path / "steps/0001-task1/experts.safetensors"
    checks = []
    tensors = open_tensors(path, lambda: checks.append(1))
    for name in tensors:
        assert tensors[name].shape == tensors.specs[name].shape
    assert len(checks) == 1
    os.utime(path, ns=(1, 1))
    assert all(tensor.any() for tensor in tensors.values())
    assert len(checks) == 2


def test_damage_after_opening_is_found_when_the_next_tensor_is_read(run):
    path = run.path / "steps/0001-task1/experts.safetensors"
    tensors = run.read(0, "experts")
    assert tensors["layer2.A"].any()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunDamagedError, match=r"experts\.safetensors: expected sha256"):
        tensors["layer2.A"]
    path.unlink()
    with pytest.raises(RunDamagedError, match="expected a file, found none"):
        tensors["layer2.A"]
