"""An export is there whole or not at all, and takes nobody's place."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mingle.errors import ConfigError, ExportError, UnknownNameError
from mingle.export import TARGETS, export_run
from mingle.export.folder import check_files, new_folder


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
