"""Of a run is read what is needed, and what was checked is not checked again until it changes."""

import shutil
import subprocess
import sys
from collections import Counter

import pytest

import mingle
from mingle.errors import RunDamagedError, RunError
from mingle.state import History
from mingle.state.manifest import FileEntry
from mingle.weights import Entry

TASKS = ("task1", "task2", "task3")


@pytest.fixture(scope="module")
def stored(zoo, tmp_path_factory):
    """A run of three steps. Read only."""
    import torch

    images = torch.randint(
        0, 256, (8, 3, 16, 16), generator=torch.Generator().manual_seed(5), dtype=torch.uint8
    )
    run = mingle.MergeRun.create(
        tmp_path_factory.mktemp("read") / "run", zoo / "base", options={"steps": 1, "rank": 2}
    )
    for task in TASKS:
        run.add(zoo / task, seeds=images)
    return run.path


@pytest.fixture
def path(stored, zoo, tmp_path):
    """A copy that may be damaged."""
    shutil.copytree(zoo / "base", tmp_path / "base")
    return mingle.MergeRun.open(stored).copy(tmp_path / "run", base="../base").path


@pytest.fixture
def hashed(monkeypatch):
    """How often each file was hashed."""
    found, of_file = Counter(), FileEntry.of_file

    def counted(file):
        found[f"{file.parent.name}/{file.name}"] += 1
        return of_file(file)

    monkeypatch.setattr(FileEntry, "of_file", counted)
    return found


def tensor_files(path, step="*"):
    return sorted((path / "steps").glob(f"{step}/*.safetensors"))


def spoil(files):
    """Other bytes, the same size."""
    for file in files:
        file.write_bytes(bytes(file.stat().st_size))


def test_scoring_every_prefix_hashes_each_file_once(path, hashed, images):
    run = mingle.MergeRun.open(path)
    for count in range(len(TASKS) + 1):
        run.model(steps=count)
    for task in TASKS:
        run.predict(images[:2], task)
    for step in run.state.steps:
        assert [dict(tensors) for tensors in step.tensors.values()]
    assert hashed == {f"{file.parent.name}/{file.name}": 1 for file in tensor_files(path)}
    # Experts, router, head.
    assert len(hashed) == 3 * len(TASKS)


def test_adding_and_undoing_hash_nothing_again(path, hashed, zoo, images):
    run = mingle.MergeRun.open(path)
    run.model()
    for _ in range(2):
        run.add(zoo / "task4", seeds=images)
        run.model()
        assert run.undo() == "task4"
    run.model()
    # Another step of the same name, in the same place, is another file to check.
    assert all(count == 1 + ("task4" in file) for file, count in hashed.items())
    assert len(hashed) == 3 * len(TASKS) + 3


def test_a_model_of_some_steps_touches_no_file_of_later_ones(path):
    spoil(tensor_files(path, "000[23]*"))
    run = mingle.MergeRun.open(path)
    assert run.model(steps=1) is not None
    assert run.head("task1").classes == ("class0", "class1", "class2", "class3")
    for steps in (2, None):
        with pytest.raises(RunDamagedError, match="0002-task2/"):
            run.model(steps=steps)


def test_predicting_with_a_model_at_hand_reads_the_head_alone(path, images):
    run = mingle.MergeRun.open(path)
    model = run.model()
    expected, _ = run.predict(images[:3], "task2", model=model)
    heads = [file for file in tensor_files(path) if file.name == "head.safetensors"]
    spoil({*tensor_files(path)} - {heads[1]})
    found, _ = mingle.MergeRun.open(path).predict(images[:3], "task2", model=model)
    assert found.equal(expected)


def test_what_a_run_says_of_itself_is_read_without_its_tensors(path):
    spoil(tensor_files(path))
    for run in (History.open(path), mingle.MergeRun.open(path)):
        assert run.tasks == TASKS
        assert [run.info(task)["task"] for task in TASKS] == list(TASKS)
        assert run.size_bytes() > sum(file.stat().st_size for file in tensor_files(path))
        assert len(run.verify()) == len(tensor_files(path))


def test_a_file_that_changes_after_it_was_checked_is_checked_again(path, zoo, images):
    run = mingle.MergeRun.open(path)
    run.model()
    run.add(zoo / "task4", seeds=images)
    spoil(tensor_files(path, "0002*"))
    # The step is part of the run, whatever has been added since the file was checked.
    with pytest.raises(RunDamagedError, match="0002-task2/"):
        run.model()


def test_a_step_that_another_process_undid_is_no_damage(path):
    run = mingle.MergeRun.open(path)
    run.model()
    History.open(path).undo()
    assert run.model(steps=2) is not None
    with pytest.raises(RunError, match="changed by another process; open it again"):
        run.model()


@pytest.mark.parametrize(
    ("method", "preset", "passes", "base_passes"),
    [("average", "default", 2, 3), ("mingle", "default", 3, 4), ("mingle", "learned", 3, 4)],
)
def test_one_pass_over_a_checkpoint_checks_and_hashes_it(
    tmp_path, zoo, images, monkeypatch, method, preset, passes, base_passes
):
    """The merge is another, the teacher, if only to check seeds, a third; of the base also hash and model."""
    read, stored = Counter(), Entry._stored

    def counted(entry):
        tensor = stored(entry)
        read[entry.file.parent.name] += tensor.nbytes
        return tensor

    options = {"steps": 1, "rank": 2} if method == "mingle" else {}
    mingle.MergeRun.create(tmp_path / "run", zoo / "base", method=method, preset=preset, options=options)
    run = mingle.MergeRun.open(tmp_path / "run")
    size = sum(tensor.nbytes for _, tensor in run.base.checkpoint.tensors())
    run = mingle.MergeRun.open(tmp_path / "run")
    monkeypatch.setattr(Entry, "_stored", counted)
    run.add(zoo / "task1", seeds=images)
    assert read["task1"] == passes * size
    assert read["base"] <= base_passes * size


@pytest.mark.parametrize("command", ["--help", "show", "log", "verify", "undo"])
def test_torch_is_not_waited_for(path, command):
    arguments = ["mingle", command] if command == "--help" else ["mingle", command, str(path)]
    code = (
        f"import sys, mingle.cli; sys.argv = {arguments!r}\n"
        "try: mingle.cli.main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print('loaded:', sorted({'torch', 'transformers', 'safetensors', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"
