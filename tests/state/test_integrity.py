"""Every byte of a run is covered: a flipped bit anywhere is found, at load and by verify, and named."""

import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mingle
from mingle.errors import MingleError, RunDamagedError
from mingle.state import Manifest, RunFolder

from ..conftest import tensors_of
from .helpers import HEADER, append, snapshot
from .test_damage import MANIFEST, rewrite


@pytest.fixture(scope="module")
def merged(zoo, tmp_path_factory):
    """A run of two tasks with all files a method writes, and what an interrupted change has left in it."""
    import torch

    images = torch.randint(
        0, 256, (8, 3, 16, 16), generator=torch.Generator().manual_seed(5), dtype=torch.uint8
    )
    path = tmp_path_factory.mktemp("integrity") / "run"
    run = mingle.MergeRun.create(path, zoo / "base", options={"steps": 1, "rank": 2})
    for task in ("task1", "task2"):
        run.add(zoo / task, seeds=images)
    (path / ".mingle.lock.json").write_text('{"pid": 1, "host": "h", "since": "s"}')
    (path / "steps" / ".tmp-0003-task3").mkdir()
    shutil.copy(path / "steps" / "0001-task1" / "step.json", path / "steps" / ".tmp-0003-task3" / "step.json")
    return path, load_all(path)


def load_all(path):
    run = mingle.MergeRun.open(path)
    tensors_of(run.state)
    return run.fingerprint


@settings(max_examples=60)
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_found_and_named_or_belongs_to_no_state(merged, data):
    """Whatever file it is in: what the manifest covers is refused, what is left over changes nothing."""
    folder, whole = merged
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    path = data.draw(st.sampled_from(files))
    original = path.read_bytes()
    place = data.draw(st.integers(0, 8 * len(original) - 1))
    flipped = bytearray(original)
    flipped[place // 8] ^= 1 << place % 8
    run = mingle.MergeRun.open(folder)
    path.write_bytes(flipped)
    try:
        if path.name.startswith(".mingle.lock") or path.parent.name.startswith(".tmp-"):
            assert run.verify() == []
            assert load_all(folder) == whole
            return
        [problem] = run.verify()
        assert str(path) in problem
        with pytest.raises(MingleError, match=path.name) as caught:
            load_all(folder)
        assert str(path) in str(caught.value)
    finally:
        path.write_bytes(original)


@pytest.mark.parametrize(
    ("written", "altered"),
    [
        (b"1e-07", b"1E-07"),
        (b"0.30000000000000004", b"0.30000000000000005"),
        (b'"rank": 4', b'"rank":  4'),
        (b'"tail"', b'"\\u0074ail"'),
    ],
)
def test_another_spelling_of_the_same_values_is_an_altered_manifest(tmp_path, written, altered):
    """The hash over the values is the same; the bytes are not."""
    header = {"tiny": 1e-7, "sum": 0.1 + 0.2, "rank": 4, "tail": None}
    run = append(RunFolder.create(tmp_path / "run", header), 1)
    path = run.path / MANIFEST
    data = path.read_bytes()
    assert data.count(written) == 1
    path.write_bytes(data.replace(written, altered))
    with pytest.raises(RunDamagedError, match=r"mingle\.json: expected the bytes that mingle writes"):
        RunFolder.open(run.path)
    [problem] = run.verify()
    assert MANIFEST in problem


def test_every_order_of_steps_but_the_one_that_was_written_is_refused(tmp_path):
    run = RunFolder.create(tmp_path / "run", HEADER)
    for seed in (1, 2, 3):
        run = append(run, seed)
    original = (run.path / MANIFEST).read_bytes()
    for order in (
        (0, 2, 1),
        (1, 0, 2),
        (0, 0, 1),
        (0, 1, 1),
        (1, 2),
        (0, 2),
        (1,),
        (0, 1, 2, 0),
        (0, 1, 2, 2),
    ):
        rewrite(run, lambda content, order=order: content.update(steps=[content["steps"][i] for i in order]))
        with pytest.raises(RunDamagedError, match=r"mingle\.json: chain broken"):
            RunFolder.open(run.path)
        (run.path / MANIFEST).write_bytes(original)
    assert RunFolder.open(run.path).verify() == []


def test_a_step_that_was_undone_cannot_come_back_after_another(run):
    """A replayed entry: it follows the step before it, and no other."""
    undone = run.manifest.steps[1].model_dump()
    shutil.copytree(run.path / "steps" / "0002-task2", run.path / "kept")
    shorter, _ = run.undo()
    longer = append(append(shorter, 5), 6)
    rewrite(longer, lambda content: content["steps"].__setitem__(1, undone))
    (run.path / "kept").rename(run.path / "steps" / "0002-task2")
    with pytest.raises(RunDamagedError, match="chain broken at step 3"):
        RunFolder.open(run.path)


def test_a_run_that_was_started_alike_lends_no_step(zoo, tmp_path):
    """Same base, method, options, seed and task: the steps are still of two runs."""
    for name in ("one", "two"):
        mingle.MergeRun.create(tmp_path / name, zoo / "base", method="average").add(zoo / "task1")
    theirs = Manifest.load(tmp_path / "two").steps[0].model_dump()
    rewrite(RunFolder.open(tmp_path / "one"), lambda content: content.update(steps=[theirs]))
    shutil.copytree(tmp_path / "two" / "steps", tmp_path / "one" / "steps", dirs_exist_ok=True)
    with pytest.raises(RunDamagedError, match="chain broken at step 1"):
        mingle.MergeRun.open(tmp_path / "one")


def test_a_whole_file_of_another_step_or_run_is_found(run, tmp_path):
    """A swap of files of the same size, where sizes tell nothing."""
    other = append(append(RunFolder.create(tmp_path / "other", {**HEADER, "method": "ties"}), 3), 4)
    stored = snapshot(run.path)
    for source in (run.path / "steps/0001-task1", other.path / "steps/0002-task4"):
        for name in ("experts.safetensors", "gates.safetensors"):
            target = run.path / "steps/0002-task2" / name
            shutil.copy(source / name, target)
            assert target.stat().st_size == len(stored[f"steps/0002-task2/{name}"])
            opened = RunFolder.open(run.path)
            with pytest.raises(RunDamagedError, match=f"0002-task2/{name}"):
                opened.read(1, target.stem)
            [problem] = opened.verify()
            assert str(target) in problem
            target.write_bytes(stored[f"steps/0002-task2/{name}"])
    assert run.verify() == []
