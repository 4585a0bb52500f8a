"""``mingle suite``: what there is, what is in it, and building what is not there."""

import json

import pytest

from mingle.cli import suite as suite_commands
from mingle.suites import SUITES
from mingle.suites._glyph import build as building
from mingle.suites._glyph.package import SHIPPED


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINGLE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_list_says_what_is_ready_and_how_to_get_the_rest(call):
    code, out, _ = call("suite", "list")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0
    assert set(lines) == set(SUITES.names())
    assert lines["glyph8"].split()[1:] == ["8", "tasks", "ready"]
    assert "run `mingle suite build glyph14` (about 8 minutes" in lines["glyph14"]
    found = {entry["suite"]: entry for entry in json.loads(call("suite", "list", "--json")[1])}
    assert found["glyph8"]["missing"] == []
    assert len(found["glyph20"]["tasks"]) == 20


def test_show_gives_the_accuracies_that_the_suite_states(call):
    code, out, _ = call("suite", "show", "glyph8")
    assert code == 0
    assert "backbone  clip" in out
    assert f"base      {SHIPPED / 'base'}" in out
    stated = SUITES.get("glyph8").description["individual_accuracy"]
    rows = {line.split()[0]: line.split()[-1] for line in out.splitlines() if line.startswith("  ")}
    assert all(rows[task] == f"{100 * value:.1f}" for task, value in stated.items())
    found = json.loads(call("suite", "show", "glyph8", "--json")[1])
    assert found["tasks"] == list(SUITES.get("glyph8").tasks)


def test_show_works_before_a_suite_is_built(call):
    code, out, _ = call("suite", "show", "glyph20")
    assert code == 0
    assert "mnist, fashion_mnist" in out
    assert "missing   suite 'glyph20' is not built" in out


def test_names_that_are_wrong(call):
    for arguments in (("show", "glyph7"), ("build", "glyph7")):
        code, out, err = call("suite", *arguments)
        assert (code, out) == (2, "")
        assert "'glyph7'; did you mean" in err


def test_there_is_nothing_to_build_of_the_shipped_suite(call, cache):
    code, out, err = call("suite", "build", "glyph8")
    assert code == 0
    assert f"glyph8 is in {SHIPPED}" in out
    assert f"glyph8 in {cache}: nothing left to do" in err


def test_missing_tools_are_named_and_nothing_is_written(call, cache, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(building, "check_extra", lambda: None)
    code, _, err = call("suite", "build", "glyph20")
    assert code == 2
    assert "program 'npm' not found" in err
    assert not cache.exists()


def test_ctrl_c_says_how_to_go_on(call, monkeypatch):
    def interrupted(todo, progress):
        progress("render hebrew", 0, 12)
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "build", interrupted)
    code, out, err = call("suite", "build", "glyph8")
    assert (code, out) == (130, "")
    assert "render hebrew (0 of 12)" in err
    assert err.splitlines()[-1] == "mingle: interrupted; run the same command again to continue from here"


def test_lines_without_a_terminal_do_not_come_too_often(capsys, monkeypatch):
    clock = iter([0.0, 1.0, 20.0, 40.0])
    monkeypatch.setattr(suite_commands.time, "monotonic", lambda: next(clock))
    with suite_commands._told() as progress:
        for done, what in enumerate(("one", "two", "three", "three")):
            progress(what, done, 4)
    assert capsys.readouterr().err.splitlines() == ["one (0 of 4)", "three (2 of 4)"]


def test_show_gives_the_figures_of_the_paper(call):
    code, out, _ = call("suite", "show", "clip8")
    assert code == 0
    assert "mingle 85.8" in out
    assert "opcm BWT -6.3" in out
    assert json.loads(call("suite", "show", "clip8_l14", "--json")[1])["expected"]["mingle"] == 91.8
    assert json.loads(call("suite", "show", "glyph8", "--json")[1])["expected"] == {}


def test_options_that_a_suite_does_not_have(call, cache, tmp_path):
    code, _, err = call("suite", "build", "glyph14", "--base", str(tmp_path))
    assert (code, "its base is shipped" in err) == (2, True)
    code, _, err = call("suite", "build", "glyph14", "--lora")
    assert (code, "unknown suite that can be built 'glyph14_lora'" in err) == (2, True)
    code, _, err = call("suite", "build", "dino8", "--lora", "--base", str(tmp_path))
    assert (code, "expected a model folder with config.json" in err) == (2, True)
    assert not cache.exists()
