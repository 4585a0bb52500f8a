"""GLUE as prompts and answers, on local copies of the same layout."""

import json

import pytest

from mingle.benchmark import Contender, Corruption, InProcess, Table, run_table
from mingle.errors import ConfigError, UnknownNameError
from mingle.suites import SUITES
from mingle.suites.glue8 import SCORES, GlueSuite, recipes

from ..backbones.t5 import answer, sentences, write_t5
from .fake_clip import into_hub_cache

TASKS = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")
COLUMNS = {
    "cola": ("sentence",),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "qqp": ("question1", "question2"),
    "sst2": ("sentence",),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny family under the published names: base, and two of its fine-tunings."""
    root = tmp_path_factory.mktemp("glue")
    family = write_t5(root / "family", steps=2, tasks=2)
    (root / "models").mkdir()
    (family / "base").rename(root / "models" / "google__flan-t5-base")
    (family / "task1").rename(root / "models" / "tanganke__flan-t5-base_glue-sst2")
    (family / "task2").rename(root / "models" / "tanganke__flan-t5-base_glue-cola")
    return root


@pytest.fixture
def root(models, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("MINGLE_DATA", str(tmp_path))
    (tmp_path / "models").symlink_to(models / "models")
    for number, task in enumerate(("sst2", "cola")):
        for split, size in (("validation", 6), ("train", 10)):
            rows = [{"sentence": s, "label": answer(s, number) % 2} for s in sentences(number + size, size)]
            write_rows(tmp_path, task, split, rows)
    return tmp_path


@pytest.fixture
def suite():
    return SUITES.get("glue8")


def write_rows(root, task, split, rows, suffix="jsonl"):
    folder = root / "glue" / task
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(map(json.dumps, rows))
    if suffix == "tsv":
        lines = [rows[0].keys(), *(map(str, row.values()) for row in rows)]
        text = "\n".join("\t".join(line) for line in lines)
    (folder / f"{split}.{suffix}").write_text(text)


def test_tasks_and_answers(suite):
    assert (suite.name, suite.backbone, suite.tasks) == ("glue8", "seq2seq", TASKS)
    assert suite.base_model.id == "google/flan-t5-base"
    assert suite.task_model("rte").id == "tanganke/flan-t5-base_glue-rte"
    assert suite.hub_data("mnli").test == "validation_matched"
    assert suite.head("mnli").classes == ("entailment", "neutral", "contradiction")
    assert suite.head("stsb").classes == SCORES
    assert (len(SCORES), SCORES[0], SCORES[38], SCORES[-1]) == (51, "0.0", "3.8", "5.0")
    assert suite.expected["mingle"] == 83.3
    for task in TASKS:
        columns = COLUMNS.get(task, ("sentence1", "sentence2"))
        filled = recipes().tasks[task].prompt.format(**{name: f"<{name}>" for name in columns})
        assert all(f"<{name}>" in filled for name in columns)
    with pytest.raises(UnknownNameError, match="'wnli'; did you mean"):
        suite.head("wnli")


@pytest.mark.parametrize("suffix", ["jsonl", "tsv"])
def test_rows_become_prompts_and_labels(root, suite, suffix):
    rows = [
        {"sentence1": "a film", "sentence2": 'the "plot" {x}', "label": 3.799999952316284},
        {"sentence1": "bad", "sentence2": "dull", "label": 0},
    ]
    write_rows(root, "stsb", "validation", rows, suffix)
    texts, labels = suite.test("stsb")
    assert texts[0] == recipes().tasks["stsb"].prompt.format(**rows[0])
    assert 'the "plot" {x}' in texts[0]
    assert labels.tolist() == [38, 0]


def test_own_prompt_replaces_the_recipe(root, suite):
    (root / "glue" / "sst2" / "prompt.txt").write_text("{sentence} – good?\n")
    assert suite.test("sst2")[0] == [f"{text} – good?" for text in sentences(6, 6)]


def test_seeds_are_of_the_training_split(root, suite):
    assert suite.missing(["sst2", "cola"]) == []
    assert suite.seeds("sst2") == suite.train("sst2")[0]
    assert len(suite.seeds("sst2")) == 10
    assert not set(suite.seeds("sst2")) & set(suite.test("sst2")[0])


def test_a_whole_benchmark(root, tmp_path, monkeypatch):
    monkeypatch.setattr("mingle.backbones.seq2seq.MAX_NEW_TOKENS", 4)
    monkeypatch.setattr(GlueSuite, "tasks", ("sst2", "cola"))
    options = {"steps": 2, "rank": 4, "seeds_in_all": 6}
    rows = (Contender("average", "average"), Contender("mingle", "mingle", "text", options))
    found = run_table(Table("Quick", rows), "glue8", InProcess(), tmp_path / "out", orders=(42,))
    cells = {row["label"]: row["cells"][0] for row in found["rows"]}
    assert [cell["status"] for cell in cells.values()] == ["done"] * 4
    assert [len(row) for row in cells["mingle"]["matrix"]] == [1, 2]
    assert cells["mingle"]["seed_samples"]["used"] == [6, 6]
    json.dumps(found, allow_nan=False)
    noisy = (Contender("noisy", "average", corruption=Corruption("contrast")),)
    with pytest.raises(ConfigError, match="suite 'glue8' is text"):
        run_table(Table("Noise", noisy), "glue8", InProcess(), tmp_path / "out", orders=(42,))


def test_everything_that_is_missing_is_listed_at_once(root, suite):
    (root / "glue" / "cola" / "train.jsonl").unlink()
    lines = suite.missing(["sst2", "cola", "rte"])
    assert len(lines) == 3
    assert lines[0].startswith("data of 'cola' (train): `hf download --repo-type dataset nyu-mll/glue`")
    assert lines[1].startswith("model tanganke/flan-t5-base_glue-rte (rte): `hf download")
    assert lines[2].startswith("data of 'rte' (test and train): ")
    with pytest.raises(ConfigError, match="3 to fetch first"):
        suite.check(["sst2", "cola", "rte"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"text": "x", "label": 0}', "row 1 of task 'rte' has no usable columns"),
        ('{"sentence1": "a", "sentence2": "b", "label": "yes"}', "row 1 of task 'rte' has no usable columns"),
        ("[1]", "expected one JSON object per line"),
        ("{", "rows not readable"),
    ],
)
def test_rows_that_cannot_be_used(root, suite, text, message):
    (root / "glue" / "rte").mkdir()
    (root / "glue" / "rte" / "validation.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=message):
        suite.test("rte")


def test_data_of_the_hub_is_read_from_its_cache(root, suite, monkeypatch):
    """The layout of the Hub: parquet files by configuration, named in the description's header."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(root / "arrow"))
    folder = root / "repository"
    (folder / "mnli").mkdir(parents=True)
    rows = {"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [2, 0], "idx": [0, 1]}
    for split in ("train", "validation_matched"):
        datasets.Dataset.from_dict(rows).to_parquet(folder / "mnli" / f"{split}-00000-of-00001.parquet")
    files = "".join(
        f"  - split: {split}\n    path: mnli/{split}-*\n" for split in ("train", "validation_matched")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: mnli\n  data_files:\n{files}---\n")
    into_hub_cache(root / "hub", "dataset", "nyu-mll/glue", folder)
    texts, labels = suite.test("mnli")
    assert labels.tolist() == [2, 0]
    assert texts[1] == recipes().tasks["mnli"].prompt.format(premise="b", hypothesis="d")
    assert [line for line in suite.missing(["mnli"]) if line.startswith("data")] == []
