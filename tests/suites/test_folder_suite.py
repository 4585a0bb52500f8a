"""A suite that lies in a folder."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mingle.errors import ConfigError, UnknownNameError
from mingle.registry import Registry
from mingle.suites import SUITES, FolderSuite, load_samples, locate, open_suite, suite_part

from .conftest import TASKS, random_images


def test_folder_says_what_it_holds(suite_folder):
    suite = open_suite(suite_folder)
    assert (suite.name, suite.backbone, suite.tasks) == ("tiny", "clip", TASKS)
    assert suite.base == suite_folder / "base"
    assert suite.checkpoint("task2") == suite_folder / "task2"


def test_seeds_and_tests_are_what_was_stored(suite_folder):
    suite = FolderSuite(suite_folder)
    stored = load_file(suite_folder / "data" / "task2.safetensors")
    images, labels = suite.test("task2")
    assert torch.equal(images, stored["test_images"])
    assert torch.equal(labels, stored["test_labels"])
    assert torch.equal(suite.seeds("task2"), stored["seed_images"])


def test_wrong_task_gets_the_nearest_right_one(suite_folder):
    suite = FolderSuite(suite_folder)
    for ask in (suite.checkpoint, suite.test, suite.seeds):
        with pytest.raises(UnknownNameError, match="unknown task of suite 'tiny' 'tsk2'; did you mean task"):
            ask("tsk2")


def test_training_data_where_there_is_some(suite_folder):
    suite = FolderSuite(suite_folder)
    with pytest.raises(ConfigError, match="suite 'tiny': no training data of task 'task1'"):
        suite.train("task1")
    data = {"train_images": random_images(5, 7), "train_labels": torch.arange(7) % 4}
    file = suite_folder / "data" / "task1.train.safetensors"
    save_file(data, file)
    images, labels = suite.train("task1")
    assert torch.equal(images, data["train_images"])
    assert torch.equal(labels, data["train_labels"])
    save_file({"train_images": data["train_images"]}, file)
    with pytest.raises(ConfigError, match="no tensor 'train_labels'; found train_images"):
        suite.train("task1")


def test_everything_that_is_missing_is_listed_at_once(suite_folder):
    suite = FolderSuite(suite_folder)
    assert suite.missing(TASKS) == []
    shutil.rmtree(suite_folder / "base")
    shutil.rmtree(suite_folder / "task2")
    (suite_folder / "data" / "task3.safetensors").unlink()
    found = suite.missing(TASKS)
    expected = [suite_folder / "base", suite_folder / "task2", suite_folder / "data" / "task3.safetensors"]
    assert [line.split(": not found; ")[0] for line in found] == [str(path) for path in expected]
    assert len(suite.missing(["task1"])) == 1


def test_heads_lie_beside_the_checkpoints(suite_folder):
    suite = FolderSuite(suite_folder)
    assert suite.head("task1") is None
    with pytest.raises(UnknownNameError):
        suite.head("tsk1")


@pytest.mark.parametrize("text", ["", "{", "[]", '"suite"', '{"schema": 2}', "{}"])
def test_broken_description(suite_folder, text):
    (suite_folder / "suite.json").write_text(text)
    with pytest.raises(ConfigError) as error:
        FolderSuite(suite_folder).tasks  # noqa: B018
    assert str(error.value).startswith(f"{suite_folder / 'suite.json'}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["name", "backbone", "base", "tasks"])
def test_incomplete_description(suite_folder, key):
    path = suite_folder / "suite.json"
    description = json.loads(path.read_text())
    del description[key]
    path.write_text(json.dumps(description))
    with pytest.raises(ConfigError, match=f"suite.json: .*'{key}'"):
        getattr(FolderSuite(suite_folder), key)


def test_data_that_is_missing_or_damaged(suite_folder):
    suite = FolderSuite(suite_folder)
    file = suite_folder / "data" / "task1.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"task1\.safetensors: data of task 'task1' not readable"):
        suite.test("task1")
    file.unlink()
    with pytest.raises(ConfigError, match=r"task1\.safetensors: data of task 'task1' not readable"):
        suite.seeds("task1")


def test_a_suite_is_found_by_name_or_by_folder(suite_folder):
    assert open_suite("glyph8") is SUITES.get("glyph8")
    assert open_suite(str(suite_folder)).folder == suite_folder
    with pytest.raises(UnknownNameError, match="unknown suite 'glyph'; did you mean glyph8"):
        open_suite("glyph")


def test_parts_of_a_registered_suite(suite_folder, monkeypatch):
    suite = FolderSuite(suite_folder)

    def get(self, name):
        assert (self.kind, name) == ("suite", "tiny")
        return suite

    monkeypatch.setattr(Registry, "get", get)
    assert suite_part("tiny:task1") == (suite, "task1")
    assert locate("tiny:base") == suite_folder / "base"
    assert locate("tiny:task3") == suite_folder / "task3"
    seeds = load_samples("tiny:task1")
    assert torch.equal(seeds.samples, suite.seeds("task1"))
    assert seeds.labels is None
    scored = load_samples("tiny:task1", scored=True)
    assert torch.equal(scored.samples, suite.test("task1")[0])
    assert torch.equal(scored.labels, suite.test("task1")[1])
    assert (seeds.source, scored.source) == ("tiny:task1 (seed pool)", "tiny:task1 (test images)")


@pytest.mark.parametrize("source", ["owner/name", "folder", "C:/models/x", "./a:b", "no suite:x"])
def test_ordinary_sources_are_left_alone(source):
    assert suite_part(source) is None
    assert locate(source) == source


def test_a_task_of_texts_lies_in_files_of_lines(suite_folder):
    suite = FolderSuite(suite_folder)
    for part, lines in {
        "test": [{"text": "a tea", "label": 1}, {"text": "tin", "label": 0}],
        "train": [{"text": "more tea", "label": 1}],
    }.items():
        file = suite_folder / "data" / f"task1.{part}.jsonl"
        file.write_text("\n".join(map(json.dumps, lines)))
    assert [line.split(":")[0] for line in suite.missing(TASKS)] == [
        str(suite_folder / "data" / "task1.seeds.jsonl")
    ]
    (suite_folder / "data" / "task1.seeds.jsonl").write_text('{"text": "tea again"}')
    assert suite.missing(TASKS) == []
    assert (suite.test("task1")[0], suite.test("task1")[1].tolist()) == (["a tea", "tin"], [1, 0])
    assert (suite.seeds("task1"), suite.train("task1")[0]) == (["tea again"], ["more tea"])
    assert isinstance(suite.test("task2")[0], torch.Tensor)
    (suite_folder / "data" / "task1.test.jsonl").write_text('{"text": "tea"}')
    with pytest.raises(ConfigError, match=r"task1.test.jsonl: expected a label in every line, found none"):
        suite.test("task1")
