"""A folder that mingle.from_pretrained opens in one line, and its card."""

import json
import shutil

import pytest
import torch
import yaml

import mingle
from mingle.errors import CheckpointError, ConfigError, ExportError, RunDamagedError
from mingle.export import export_run, model_card
from tests.backbones.families import FAMILIES
from tests.export.conftest import TASKS, merge

SCORES = {"acc": 0.5, "bwt": -0.015, "mixed_acc": None}


@pytest.fixture(scope="module")
def made(narrow, pixels, tmp_path_factory):
    """An export with its base, after everything it was made from is gone; and what its run predicted."""
    root = tmp_path_factory.mktemp("made")
    home = root / "home"
    shutil.copytree(narrow, home / "zoo")
    run = merge(home / "run", home / "zoo", pixels, "mingle", steps=2, lr=0.05)
    expected = run.predict(pixels, "task2"), run.model()
    export_run(run, "hf", home / "out", options={"with_base": True})
    (home / "out").rename(root / "elsewhere")
    shutil.rmtree(home)
    return root / "elsewhere", expected


@pytest.fixture
def moved(made, tmp_path):
    """The same in a folder of the test's own."""
    folder, expected = made
    return shutil.copytree(folder, tmp_path / "copy"), expected


def test_it_opens_without_the_checkpoints_and_predicts_the_same_bits(moved, pixels):
    folder, ((probabilities, classes), model) = moved
    merged = mingle.from_pretrained(folder)
    found, names = merged.predict(pixels, "task2")
    assert torch.equal(found, probabilities)
    assert names == classes == merged.classes("task2")
    assert merged.tasks == TASKS
    state = merged.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert mingle.MergeRun.open(folder).verify() == []


def test_a_base_of_open_clip_brings_its_settings(pixels, tmp_path):
    FAMILIES["open_clip"].write(tmp_path)
    run = mingle.MergeRun.create(tmp_path / "run", tmp_path / "base", method="average", backbone="open_clip")
    run.add(tmp_path / "task1")
    expected, _ = run.predict(pixels, "task1")
    export_run(run, "hf", tmp_path / "out", options={"with_base": True})
    shutil.rmtree(tmp_path / "base")
    found, _ = mingle.from_pretrained(tmp_path / "out").predict(pixels, "task1")
    assert torch.equal(found, expected)


def test_it_holds_no_pickle_and_no_path_of_the_machine(made):
    folder, _ = made
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".md", ".safetensors"}
    assert [path for path in files if str(folder.parent).encode() in path.read_bytes()] == []
    assert json.loads((folder / "mingle.json").read_text())["header"]["base"]["source"] == "base"


def test_a_hub_id_is_fetched_with_all_that_is_hashed(made, monkeypatch):
    folder, _ = made
    asked = []

    def download(repo, allow_patterns):
        asked.append(repo)
        wanted = [p for pattern in allow_patterns for p in folder.rglob(pattern)]
        assert {p for p in folder.rglob("*") if p.is_file()} <= set(wanted)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert mingle.from_pretrained("owner/merged").tasks == TASKS
    assert asked == ["owner/merged"]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("base/config.json", RunDamagedError),
        ("base/model.safetensors", RunDamagedError),
        ("steps/0002-task2/router.safetensors", RunDamagedError),
    ],
)
def test_an_altered_file_is_found_on_opening(moved, name, error):
    folder, _ = moved
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(error, match=f"{name}: expected sha256"):
        mingle.from_pretrained(folder)
    (folder / name).unlink()
    with pytest.raises(error, match=f"{name}: expected a file, found none"):
        mingle.from_pretrained(folder)


def test_the_card_may_be_edited(moved):
    folder, _ = moved
    (folder / "README.md").write_text("# Mine")
    assert mingle.from_pretrained(folder).tasks == TASKS


def test_a_base_by_reference_is_found_beside_it_or_where_it_is_said_to_be(averaged, narrow, tmp_path):
    out = tmp_path / "out"
    export_run(averaged, "hf", out)
    header = json.loads((out / "mingle.json").read_text())["header"]
    assert (out / header["base"]["source"]).samefile(narrow / "base")
    assert mingle.from_pretrained(out).run.base.checkpoint.fingerprint == averaged.base.checkpoint.fingerprint
    out.rename(tmp_path / "deep")
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "deep").rename(tmp_path / "a" / "b" / "out")
    with pytest.raises(CheckpointError, match=r"if it has moved, pass base= \(--base\)"):
        mingle.from_pretrained(tmp_path / "a" / "b" / "out")
    assert mingle.from_pretrained(tmp_path / "a" / "b" / "out", base=narrow / "base").tasks == TASKS


def test_anything_else_is_refused(averaged, tmp_path):
    export_run(averaged, "merged", tmp_path / "merged")
    with pytest.raises(ExportError, match="an export to 'merged', which other libraries open"):
        mingle.from_pretrained(tmp_path / "merged")
    with pytest.raises(ExportError, match=r"holds no export\.json"):
        mingle.from_pretrained(averaged.path)
    with pytest.raises(CheckpointError, match="no such folder"):
        mingle.from_pretrained(tmp_path / "nothing")


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_says_what_it_is_made_of(averaged, moved):
    card = (moved[0] / "README.md").read_text()
    assert front_matter(card) == {
        "library_name": "mingle",
        "license": "unknown",
        "tags": ["mingle", "model-merging", "continual-learning", "clip"],
    }
    assert "| task2 | task2 | 4 | unknown |" in card
    assert "| lr | 0.05 |" in card
    assert "Not measured." in card
    assert "average" in front_matter(model_card(averaged))["tags"]


def test_the_card_takes_licences_from_the_parts(narrow, pixels, tmp_path):
    zoo = tmp_path / "zoo"
    shutil.copytree(narrow, zoo)
    run = merge(tmp_path / "run", zoo, pixels, "average", tasks=TASKS[:2])
    for part in ("base", "task1"):
        (zoo / part / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    assert front_matter(model_card(run))["license"] == "unknown"
    (zoo / "suite.json").write_text('{"license": "apache-2.0"}')
    assert front_matter(model_card(run))["license"] == "apache-2.0"
    (zoo / "suite.json").write_text('{"license": "apache-2.0", "licenses": {"task2": "bsd-3-clause"}}')
    assert "| task2 | task2 | 4 | bsd-3-clause |" in model_card(run)
    (zoo / "task2" / "README.md").write_text("---\nlicense: mit\n---\n")
    card = model_card(run)
    assert front_matter(card)["license"] == "other"
    assert "| task2 | task2 | 4 | mit |" in card


def evaluation(run, **changes):
    own = {key: run.header[key] for key in ("method", "preset", "settings")}
    found = {"tasks": list(run.tasks), "matrix": [[0.1], [0.2, 0.3], [0.4, 0.5, 0.6]], "samples_per_task": 9}
    return {**own, **found, "metrics": SCORES, **changes}


def test_the_card_shows_scores_of_this_run_only(averaged):
    card = model_card(averaged, results=evaluation(averaged))
    assert "at most 9 test samples per task" in card
    assert "| ACC, mean accuracy over the tasks | 50.0 |" in card
    assert "| BWT, backward transfer | -1.5 |" in card
    assert "| accuracy on task3 | 60.0 |" in card
    assert "mixed ACC" not in card
    with pytest.raises(ConfigError, match="preset, tasks differ: they are of something else"):
        model_card(averaged, results=evaluation(averaged, tasks=["other"], preset="strong"))


def test_the_card_says_that_a_benchmark_is_not_this_run(averaged):
    row = {
        **{key: averaged.header[key] for key in ("method", "preset", "settings")},
        "corruption": None,
        "cells": [{"status": "done"}, {"status": "done"}, {"status": "skipped"}],
        "mean": SCORES,
        "std": {"acc": 0.02},
    }
    results = {"rows": [{**row, "method": "ties"}, row], "suite": {"name": "own"}}
    card = model_card(averaged, results=results)
    assert "on suite own: mean ± standard deviation over 2 task orders, not this run itself" in card
    assert "| ACC, mean accuracy over the tasks | 50.0 ± 2.0 |" in card
    with pytest.raises(ConfigError, match="no row of method 'average'"):
        model_card(averaged, results={"rows": results["rows"][:1]})
