"""An export is there whole or not at all, and takes nobody's place."""

import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mingle.errors import ConfigError, ExportError, RunDamagedError, UnknownNameError
from mingle.export import TARGETS, export_run
from mingle.export.folder import check_files, file_names, new_folder
from tests.state.interruption import Interruption


def test_it_takes_the_place_of_an_earlier_export_only_when_told(averaged, tmp_path):
    out = tmp_path / "out"
    first = export_run(averaged, "merged", out)
    with pytest.raises(ExportError, match="already holds an export"):
        export_run(averaged, "hf", out)
    assert check_files(out) == first
    second = export_run(averaged, "hf", out, force=True)
    assert check_files(out) == second
    assert not (out / "config.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_export_is_left_alone(averaged, tmp_path, force):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ExportError, match="not an earlier export"):
        export_run(averaged, "merged", tmp_path, force=force)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_failure_leaves_what_was_there(averaged, tmp_path, monkeypatch):
    out = tmp_path / "out"
    content = export_run(averaged, "merged", out)

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mingle.export.targets.merged.write_heads", fail)
    with pytest.raises(ExportError, match=r"out: could not write the export \(No space left"):
        export_run(averaged, "merged", out, force=True)
    assert check_files(out) == content
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.fixture
def no_swap(monkeypatch):
    """A system that cannot swap two names in one instant."""
    monkeypatch.setattr("mingle.export.folder.exchange", lambda one, other: False)


@pytest.mark.usefixtures("no_swap")
def test_an_export_that_cannot_take_the_place_leaves_the_earlier_one(averaged, tmp_path, monkeypatch):
    out, rename = tmp_path / "out", Path.rename
    content = export_run(averaged, "merged", out)

    def fail(path, target):
        if target == out and path.name != "older":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(ExportError, match=r"could not write the export \(Input/output error\)"):
        export_run(averaged, "merged", out, force=True)
    assert check_files(out) == content
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("no_swap")
def test_the_next_export_makes_good_what_a_killed_one_left(averaged, tmp_path, monkeypatch):
    out, rename = tmp_path / "out", Path.rename
    content = export_run(averaged, "merged", out)

    def kill(path, target):
        """Once the earlier export has moved aside, the process does nothing any more."""
        if not out.exists():
            raise SystemExit
        if path == out:
            patches.setattr("shutil.rmtree", lambda *args, **kwargs: None)
        return rename(path, target)

    with monkeypatch.context() as patches:
        patches.setattr(Path, "rename", kill)
        with pytest.raises(SystemExit):
            export_run(averaged, "hf", out, force=True)
    assert not out.exists()
    with pytest.raises(ExportError, match="already holds an export"):
        export_run(averaged, "hf", out)
    assert check_files(out) == content
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(sys.platform != "linux", reason="names are swapped on Linux")
def test_the_place_is_never_empty(averaged, tmp_path, monkeypatch):
    """Where names can be swapped, an export is there at every instant of being replaced."""
    out, rename = tmp_path / "out", Path.rename
    export_run(averaged, "merged", out)

    def watched(path, target):
        assert out not in (path, target), "taken away, or put where nothing is"
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", watched)
    content = export_run(averaged, "hf", out, force=True)
    assert check_files(out) == content
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_every_name_is_synced_before_the_export_takes_its_place(averaged, tmp_path):
    """What a power cut could tear apart if the order were another."""
    with pytest.MonkeyPatch.context() as patch:
        points = Interruption(patch).points
        export_run(averaged, "hf", tmp_path / "out", options={"with_base": True})
    moved = points.index(("rename", ".out.export.new"))
    synced = {name for kind, name in points[:moved] if kind == "fsync"}
    parts = {path.name for path in (tmp_path / "out").rglob("*")}
    assert {*parts, ".out.export.new"} <= synced
    assert ("fsync", tmp_path.name) in points[moved:]


@pytest.mark.parametrize("seed", range(3))
def test_a_flipped_bit_of_any_file_is_found_and_named(averaged, tmp_path, seed):
    out = tmp_path / "out"
    export_run(averaged, "merged", out)
    rng = random.Random(seed)
    for name in file_names(out):
        data = bytearray(original := (out / name).read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (out / name).write_bytes(data)
        with pytest.raises((RunDamagedError, ExportError), match=name):
            check_files(out)
        (out / name).write_bytes(original)
    check_files(out)


def test_two_exports_to_one_place_do_not_meet(tmp_path):
    def again():
        with new_folder(tmp_path / "out", force=True):
            pass

    with new_folder(tmp_path / "out", force=False) as folder, ThreadPoolExecutor(1) as other:
        (folder / "file").write_text("first")
        with pytest.raises(ExportError, match="out: another export is writing there"):
            other.submit(again).result()
    assert (tmp_path / "out" / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("to", ["merged", "hf"])
def test_the_same_run_gives_the_same_files(averaged, tmp_path, to):
    assert export_run(averaged, to, tmp_path / "one") == export_run(averaged, to, tmp_path / "two")
    assert (tmp_path / "one" / "export.json").read_bytes() == (tmp_path / "two" / "export.json").read_bytes()


def test_wrong_names_and_options_are_refused_before_anything_is_written(averaged, gated, tmp_path):
    with pytest.raises(UnknownNameError, match="unknown export target 'merge'; did you mean merged"):
        export_run(averaged, "merge", tmp_path / "out")
    with pytest.raises(ConfigError, match="export to 'merged': unknown option 'with_base'"):
        export_run(averaged, "merged", tmp_path / "out", options={"with_base": True})
    with pytest.raises(ExportError, match="method 'mingle' gives every sample its own weights"):
        export_run(gated, "merged", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_every_form_says_in_a_line_what_it_is():
    assert TARGETS.names() == ["hf", "merged", "onnx", "peft"]
    for name in TARGETS.names():
        assert TARGETS.get(name).name() == name
