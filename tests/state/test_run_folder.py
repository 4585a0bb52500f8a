import json
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mingle.errors import RunError, TaskExistsError
from mingle.state import RunFolder
from mingle.state.manifest import check_name

from .helpers import HEADER, append, assert_step, info_of, snapshot, tensors_of

# What cannot be a task, nor the name of a tensor file.
ILLEGAL_NAMES = [
    "",
    ".",
    "..",
    ".hidden",
    "a/b",
    "../up",
    "/etc",
    "a\\b",
    "a b",
    "a\n",
    "é",
    "a\0",
    "x" * 101,
    "~",
]


def test_what_was_stored_is_read_back(run):
    again = RunFolder.open(run.path)
    assert again == run
    assert again.manifest.header == HEADER
    assert again.manifest.schema_version == 1
    assert [step.summary for step in again.manifest.steps] == [{"seed": 1}, {"seed": 2}]
    assert_step(again, 0, 1)
    assert_step(again, 1, 2)
    assert_step(again, -1, 2)
    assert again.verify() == []


def test_the_folder_is_laid_out_as_documented(run):
    assert sorted(snapshot(run.path)) == [
        "mingle.json",
        *(f"steps/0001-task1/{name}" for name in ("experts.safetensors", "gates.safetensors", "step.json")),
        *(f"steps/0002-task2/{name}" for name in ("experts.safetensors", "gates.safetensors", "step.json")),
    ]
    assert run.size_bytes() == sum(map(len, snapshot(run.path).values()))


def test_a_new_run_has_no_steps(tmp_path):
    run = RunFolder.create(str(tmp_path / "deep" / "run"), {})
    assert RunFolder.open(run.path).manifest.steps == ()
    assert run.verify() == []
    with pytest.raises(RunError, match="no step; there is nothing to undo"):
        run.undo()


def test_the_same_tensors_give_the_same_bytes(tmp_path, run):
    tensors = {stem: dict(reversed(items.items())) for stem, items in reversed(tensors_of(1).items())}
    other = RunFolder.create(tmp_path / "other", dict(reversed(HEADER.items())))
    other = other.append("task1", tensors, dict(reversed(info_of(1).items())), summary={"seed": 1})
    append(other, 2)
    assert snapshot(tmp_path / "other") == snapshot(run.path)


def test_appending_leaves_earlier_steps_and_objects_alone(run):
    before = snapshot(run.path / "steps")
    manifest = run.manifest
    append(run, 3)
    assert run.manifest == manifest
    assert before.items() <= snapshot(run.path / "steps").items()
    assert_step(run, 0, 1)


def test_undo_gives_the_previous_state_back(run):
    before = snapshot(run.path)
    longer = append(run, 3)
    shorter, dropped = longer.undo()
    assert dropped.name == "task3"
    assert snapshot(run.path) == before
    assert shorter == run == RunFolder.open(run.path)
    assert_step(append(shorter, 4), 2, 4)


def test_what_the_caller_changes_afterwards_changes_nothing(tmp_path):
    header = {"options": {"rank": 4}}
    run = RunFolder.create(tmp_path, header)
    header["options"]["rank"] = 5
    assert run == RunFolder.open(tmp_path)
    run = run.append("a", {}, {}, summary={"shape": (2, 3)})
    assert run == RunFolder.open(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bool, torch.int8, torch.complex64])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_any_dtype_and_shape(tmp_path, dtype, shape):
    tensor = torch.arange(6).reshape(2, 3).to(dtype) if shape == (2, 3) else torch.ones(shape, dtype=dtype)
    run = RunFolder.create(tmp_path, {}).append("a", {"x": {"t": tensor}}, {})
    found = run.read(0, "x")["t"]
    assert found.dtype == dtype
    assert torch.equal(found, tensor)


def test_views_are_stored_by_their_values(tmp_path):
    matrix = torch.arange(6.0).reshape(2, 3)
    conjugate = torch.tensor([1 + 2j]).conj()
    views = {
        "whole": matrix,
        "tied": matrix,
        "part": matrix[1:],
        "transposed": matrix.T,
        "strided": matrix[:, ::2],
        "grad": torch.nn.Parameter(matrix),
        "conjugate": conjugate,
        "negative": conjugate.imag,
    }
    run = RunFolder.create(tmp_path, {}).append("a", {"x": views}, {})
    found = run.read(0, "x")
    assert all(torch.equal(found[name], tensor) for name, tensor in views.items())
    found["whole"].zero_()
    assert torch.equal(found["tied"], matrix)


def test_a_step_may_be_without_tensors(tmp_path):
    run = RunFolder.create(tmp_path, {}).append("a", {"empty": {}}, {})
    assert run.read(0, "empty") == {}
    assert run.append("b", {}, {"why": "nothing learnt"}).stems(1) == ()


@pytest.mark.parametrize("name", ILLEGAL_NAMES)
def test_illegal_names_are_refused(run, name):
    before = snapshot(run.path.parent)
    with pytest.raises(RunError, match="choose another name"):
        run.append(name, {}, {})
    with pytest.raises(RunError, match="choose another name"):
        run.append("fine", {name: {}}, {})
    assert snapshot(run.path.parent) == before


@pytest.mark.parametrize("name", ["a", "SUN397", "x" * 100, "-", "a..b", "v1.0_final-2"])
def test_legal_names(tmp_path, name):
    run = RunFolder.create(tmp_path, {}).append(name, {name: {}}, {})
    assert RunFolder.open(tmp_path).stems(0) == (name,)
    assert run.manifest.steps[0].folder == f"0001-{name}"


@given(st.text(max_size=8))
def test_no_legal_name_leaves_its_folder(name):
    try:
        check_name(name, "task")
    except RunError:
        return
    assert re.fullmatch(r"[\w.-]+", name, re.ASCII)
    assert not name.startswith(".")


def test_a_task_is_merged_once(run):
    before = snapshot(run.path)
    with pytest.raises(TaskExistsError, match="task 'task1' is already merged"):
        append(run, 1)
    assert snapshot(run.path) == before


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), {1: "a"}, [{None: 0}], {"a", "b"}, torch.ones(1), "\ud800", b"x"]
)
def test_only_plain_json_is_stored(tmp_path, run, value):
    before = snapshot(run.path)
    for call in (
        lambda: run.append("new", {}, {"value": value}),
        lambda: run.append("new", {}, {}, summary={"value": value}),
        lambda: RunFolder.create(tmp_path / "new", {"value": value}),
    ):
        with pytest.raises(RunError, match="expected plain JSON"):
            call()
    assert snapshot(run.path) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": [1.0]},
        {"a": torch.eye(2).to_sparse()},
        {"a": torch.ones(1, device="meta")},
        {"a": torch.ones(1, dtype=torch.complex128)},
        {"__metadata__": torch.ones(1)},
        {1: torch.ones(1)},
    ],
)
def test_only_named_dense_tensors_are_stored(run, tensors):
    before = snapshot(run.path)
    with pytest.raises(RunError, match="expected named dense tensors"):
        run.append("new", {"fine": {"t": torch.ones(1)}, "x": tensors}, {})
    assert snapshot(run.path) == before


def test_a_step_or_file_that_is_not_there(run):
    with pytest.raises(RunError, match="expected a step index below 2, found 2"):
        run.info(2)
    with pytest.raises(RunError, match=r"holds no heads.safetensors; it holds experts.safetensors, gates"):
        run.read(0, "heads")
    with pytest.raises(RunError, match="holds no"):
        run.read(0, "../0002-task2/gates")


def test_create_refuses_what_is_there_already(tmp_path, run):
    before = snapshot(run.path)
    with pytest.raises(RunError, match="already holds a run"):
        RunFolder.create(run.path, {})
    assert snapshot(run.path) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    for folder in (tmp_path / "full", tmp_path / "full" / "thesis.tex"):
        with pytest.raises(RunError, match="expected a new or empty folder"):
            RunFolder.create(folder, {})
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_opening_what_is_no_run(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere", __file__):
        with pytest.raises(RunError, match="not a run"):
            RunFolder.open(path)


def test_a_stale_object_writes_nothing(run):
    append(RunFolder.open(run.path), 3)
    before = snapshot(run.path)
    for change in (run.undo, lambda: append(run, 4)):
        with pytest.raises(RunError, match="changed by another process; open it again"):
            change()
    assert snapshot(run.path) == before


def test_a_step_that_was_undone_elsewhere_is_not_called_damaged(run):
    RunFolder.open(run.path).undo()
    with pytest.raises(RunError, match="changed by another process") as caught:
        run.read(1, "gates")
    assert type(caught.value) is RunError
    assert_step(run, 0, 1)


def test_leftovers_are_no_damage_and_go_with_the_next_change(run):
    ours = [".tmp-0003-new", "0003-task3", "0009-older"]
    for name in ours:
        (run.path / "steps" / name).mkdir()
        (run.path / "steps" / name / "gates.safetensors").write_bytes(b"half")
    (run.path / ".mingle.json.tmp").write_bytes(b"{")
    (run.path / "steps" / "notes").mkdir()
    assert RunFolder.open(run.path).verify() == []
    assert_step(append(run, 3), 2, 3)
    assert sorted(path.name for path in (run.path / "steps").iterdir()) == [
        "0001-task1",
        "0002-task2",
        "0003-task3",
        "notes",
    ]
    assert not (run.path / ".mingle.json.tmp").exists()


def test_the_manifest_is_readable_json(run):
    text = (run.path / "mingle.json").read_text(encoding="utf-8")
    content = json.loads(text)
    assert set(content) == {"schema_version", "header", "steps", "sha256"}
    assert set(content["steps"][0]) == {"name", "folder", "summary", "files", "chain"}
    assert text.endswith("}\n")
    assert (run.path / "steps/0001-task1/step.json").read_text(encoding="utf-8").count("é") == 1
