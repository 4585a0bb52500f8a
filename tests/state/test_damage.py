import json
import random
import shutil

import pytest
from safetensors.torch import save

from mingle.errors import RunDamagedError, RunError, RunSchemaError
from mingle.state import Manifest, RunFolder
from mingle.state.manifest import canonical_json

from .helpers import append, assert_step, entry_of, snapshot

MANIFEST = "mingle.json"
FILES = [
    f"steps/000{n}-task{n}/{f}"
    for n in (1, 2)
    for f in ("experts.safetensors", "gates.safetensors", "step.json")
]


def read_everything(path):
    run = RunFolder.open(path)
    for index in range(len(run.manifest.steps)):
        run.info(index)
        for stem in run.stems(index):
            run.read(index, stem)


def rewrite(run, change):
    """Edit the manifest and make its own hash fit again."""
    path = run.path / MANIFEST
    content = json.loads(path.read_bytes())
    content.pop("sha256")
    change(content)
    entry = entry_of(canonical_json(content, MANIFEST))
    path.write_text(json.dumps({**content, "sha256": entry.sha256}))


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_a_file_is_found(run, name):
    path = run.path / name
    original = path.read_bytes()
    for position in random.Random(name).sample(range(len(original) * 8), 20):
        data = bytearray(original)
        data[position // 8] ^= 1 << position % 8
        path.write_bytes(data)
        [problem] = run.verify()
        assert name in problem
        assert "\n" not in problem
        with pytest.raises(RunDamagedError, match=name):
            read_everything(run.path)
    path.write_bytes(original)
    assert run.verify() == []


def test_every_flipped_bit_of_the_manifest_is_found(run):
    path = run.path / MANIFEST
    original = path.read_bytes()
    for position in range(0, len(original) * 8, 3):
        data = bytearray(original)
        data[position // 8] ^= 1 << position % 8
        with pytest.raises((RunDamagedError, RunSchemaError), match=MANIFEST):
            Manifest.from_bytes(bytes(data), path)
    path.write_bytes(data)
    [problem] = run.verify()
    assert MANIFEST in problem
    with pytest.raises(RunDamagedError, match="restore"):
        read_everything(run.path)
    with pytest.raises(RunDamagedError, match="restore"):
        append(run, 3)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0, 10, -1])
def test_truncation_is_found_on_opening(run, name, keep):
    path = run.path / name
    path.write_bytes(path.read_bytes()[:keep])
    [problem] = run.verify()
    assert f"{name}: expected size" in problem
    with pytest.raises(RunDamagedError, match=f"{name}: expected size .* restore the file from a copy"):
        RunFolder.open(run.path)
    with pytest.raises(RunDamagedError, match=name):
        append(run, 3)


@pytest.mark.parametrize("keep", [0, 10, -2])
def test_a_truncated_manifest_is_found(run, keep):
    path = run.path / MANIFEST
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RunDamagedError, match="expected JSON"):
        RunFolder.open(run.path)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(run, name):
    (run.path / name).unlink()
    [problem] = run.verify()
    assert f"{name}: expected a file, found none to read (No such file or directory)" in problem
    with pytest.raises(RunDamagedError, match=name):
        RunFolder.open(run.path)
    index = int(name[9]) - 1
    with pytest.raises(RunDamagedError, match=name):
        _ = [run.info(index), *(run.read(index, stem) for stem in run.stems(index))]


def test_verify_lists_every_problem(run):
    for name in FILES[::2]:
        (run.path / name).unlink()
    (run.path / MANIFEST).write_bytes(b"{}")
    problems = run.verify()
    assert len(problems) == 4
    assert MANIFEST in problems[0]


def test_a_damaged_last_step_can_be_undone(run):
    before = snapshot(run.path)
    append(run, 3)
    (run.path / "steps/0003-task3/step.json").unlink()
    damaged = RunFolder.open(run.path, check_files=False)
    assert len(damaged.verify()) == 1
    whole, _ = damaged.undo()
    assert snapshot(run.path) == before
    assert_step(whole, 1, 2)


def swap_entries(content):
    content["steps"].reverse()


def swap_names(content):
    first, second = content["steps"]
    for key in ("name", "folder", "summary", "files"):
        first[key], second[key] = second[key], first[key]


def drop_first(content):
    del content["steps"][0]


def alter_header(content):
    content["header"]["method"] = "ties"


def alter_summary(content):
    content["steps"][0]["summary"]["seed"] = 7


@pytest.mark.parametrize("change", [swap_entries, swap_names, drop_first, alter_header, alter_summary])
def test_a_changed_history_breaks_the_chain(run, change):
    rewrite(run, change)
    with pytest.raises(RunDamagedError, match="chain broken at step 1"):
        RunFolder.open(run.path)
    assert any("chain broken" in problem for problem in run.verify())


def test_swapped_folders_are_found(run):
    steps = run.path / "steps"
    (steps / "0001-task1").rename(steps / "kept")
    (steps / "0002-task2").rename(steps / "0001-task1")
    (steps / "kept").rename(steps / "0002-task2")
    assert len(run.verify()) == 6
    with pytest.raises(RunDamagedError):
        read_everything(run.path)


def test_a_step_of_another_run_is_found(tmp_path, run):
    other = append(append(RunFolder.create(tmp_path / "other", {"method": "ties"}), 1), 2)
    theirs = json.loads((other.path / MANIFEST).read_bytes())["steps"][1]
    rewrite(run, lambda content: content["steps"].__setitem__(1, theirs))
    with pytest.raises(RunDamagedError, match="chain broken at step 2"):
        RunFolder.open(run.path)


def test_a_newer_schema_asks_for_an_update(run):
    for fits in (True, False):
        if fits:
            rewrite(run, lambda content: content.update(schema_version=2, novelty={}))
        else:
            content = json.loads((run.path / MANIFEST).read_bytes())
            (run.path / MANIFEST).write_text(json.dumps({**content, "schema_version": 99}))
        with pytest.raises(
            RunSchemaError, match=r"expected schema version 1 or older, found .*update mingle"
        ):
            RunFolder.open(run.path)


@pytest.mark.parametrize("version", [0, -1, True, "1", None, 1.0])
def test_a_schema_version_that_never_was(run, version):
    rewrite(run, lambda content: content.update(schema_version=version))
    with pytest.raises(RunDamagedError, match=r"schema.version"):
        RunFolder.open(run.path)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"a": NaN}', b'{"a": 1e999}', b"{}"])
def test_a_manifest_that_is_none(run, data):
    (run.path / MANIFEST).write_bytes(data)
    with pytest.raises(RunDamagedError) as caught:
        RunFolder.open(run.path)
    assert "\n" not in str(caught.value)


def forged(run, secret, name=None, folder=None, file=None):
    """A manifest whose every hash fits, and that points outside the run."""
    step = run.manifest.steps[0]
    files = {file or "x.safetensors": entry_of(secret.read_bytes())}
    forged = step.model_copy(
        update={"name": name or step.name, "folder": folder or step.folder, "files": files}
    )
    manifest = run.manifest.model_copy(update={"steps": ()}).with_step("x", {}, {})
    chain = entry_of(
        manifest._root().encode() + canonical_json(forged.model_dump(exclude={"chain"}), MANIFEST)
    ).sha256
    return manifest.model_copy(update={"steps": (forged.model_copy(update={"chain": chain}),)})


@pytest.mark.parametrize(
    "forgery",
    [
        {"file": "../../../secret.safetensors"},
        {"file": "/secret.safetensors"},
        {"file": ".hidden.safetensors"},
        {"file": "secret.pkl"},
        {"folder": "../.."},
        {"name": "../..", "folder": "0001-../.."},
    ],
)
def test_a_forged_manifest_does_not_lead_outside(tmp_path, run, forgery):
    secret = tmp_path / "secret.safetensors"
    secret.write_bytes(save({}))
    (run.path / MANIFEST).write_bytes(forged(run, secret, **forgery).to_bytes())
    with pytest.raises(RunDamagedError, match=r"String should match|expected folder"):
        RunFolder.open(run.path)


def test_bytes_that_are_no_safetensors_are_not_read(tmp_path, run):
    file = run.path / "steps/0001-task1/x.safetensors"
    file.write_bytes(b"\x80\x04pickle")
    (run.path / MANIFEST).write_bytes(forged(run, file).to_bytes())
    with pytest.raises(RunError, match="safetensors cannot read it"):
        RunFolder.open(run.path).read(0, "x")


def test_a_run_can_be_moved_and_copied(tmp_path, run):
    shutil.copytree(run.path, tmp_path / "copy")
    run.path.rename(tmp_path / "moved")
    for name in ("copy", "moved"):
        moved = RunFolder.open(tmp_path / name)
        assert moved.verify() == []
        assert_step(append(moved, 3), 2, 3)
