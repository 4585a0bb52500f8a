"""Image recipes on local copies of the same layout; what is missing is said at once."""

import json

import pytest
import torch

from mingle.backbones.clip import Clip
from mingle.benchmark import Contender, InProcess, Table, run_table
from mingle.errors import ConfigError, UnknownNameError
from mingle.state import MergeRun
from mingle.suites import SUITES, LazyImages, locate
from mingle.suites.base_clip import recipes, words

from .fake_clip import CLASSES, into_hub_cache, write_models, write_pictures, write_root

EIGHT = ("sun397", "stanford-cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd")
TASKS = tuple(CLASSES)
NAMES = [f"clip{size}{tower}" for size in (8, 14, 20) for tower in ("", "_b16", "_l14")]


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory):
    return write_root(tmp_path_factory.mktemp("data"))


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    """An empty cache of the Hub's client."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def root(shared_root, no_cache, monkeypatch):
    monkeypatch.setenv("MINGLE_DATA", str(shared_root))
    return shared_root


@pytest.fixture
def suite():
    return SUITES.get("clip8")


# --- the recipes themselves


def test_groups_are_those_of_the_paper():
    eight, fourteen, twenty = (SUITES.get(name).tasks for name in ("clip8", "clip14", "clip20"))
    assert eight == EIGHT
    assert (len(fourteen), len(twenty)) == (14, 20)
    assert fourteen[:8] == eight
    assert twenty[:14] == fourteen
    assert len(set(twenty)) == 20
    assert len(SUITES.get("mtil11").tasks) == 11


@pytest.mark.parametrize("name", [*NAMES, "mtil11"])
def test_every_task_of_a_suite_has_a_recipe(name):
    suite = SUITES.get(name)
    assert (suite.name, suite.backbone) == (name, "clip")
    for task in suite.tasks:
        recipe = recipes().tasks[task]
        assert recipe.templates
        assert all(template.count("{}") == 1 for template in recipe.templates)
        if recipe.classes:
            assert len({words(name) for name in recipe.classes}) == len(recipe.classes)
    tower = {"_l14": "large-patch14", "_b16": "base-patch16", "il11": "base-patch16"}
    wanted = tower.get(name[-4:], "base-patch32")
    assert suite.base_model.id == f"openai/clip-vit-{wanted}"
    assert suite.task_model("mnist" if name == "mtil11" else "svhn").id.startswith(
        f"tanganke/clip-vit-{wanted}_"
    )
    assert suite.expected["mingle"] > suite.expected["opcm"]


def test_numbers_of_classes_are_those_of_the_data_sets():
    sizes = {"resisc45": 45, "eurosat": 10, "svhn": 10, "gtsrb": 43, "mnist": 10, "dtd": 47, "pcam": 2,
             "oxford_flowers102": 102, "fer2013": 7, "oxford-iiit-pet": 37, "stl10": 10, "cifar100": 100,
             "cifar10": 10, "food101": 101, "fashion_mnist": 10, "emnist_letters": 26, "kmnist": 10,
             "rendered-sst2": 2}  # fmt: skip
    assert {task: len(r.classes) for task, r in recipes().tasks.items() if r.classes} == sizes


# --- local copies


def test_local_copies_are_used(root, suite):
    assert suite.base == root / "models" / "openai__clip-vit-base-patch32"
    assert suite.checkpoint("eurosat") == root / "models" / "tanganke__clip-vit-base-patch32_eurosat"
    assert locate("clip8:base") == suite.base
    assert suite.missing(TASKS) == []
    suite.check(TASKS)
    with pytest.raises(UnknownNameError, match="'eurosad'; did you mean eurosat"):
        suite.checkpoint("eurosad")


def test_labels_follow_the_names_of_the_folders(root, suite):
    """Folders of some of the classes: labels are places in the recipe's list."""
    images, labels = suite.test("resisc45")
    assert isinstance(images, LazyImages)
    expected = [recipes().tasks["resisc45"].classes.index(words(name)) for name in CLASSES["resisc45"]]
    assert labels.tolist() == [label for label in expected for _ in range(3)]
    assert images[0].size == (18, 20)
    assert len(suite.seeds("resisc45")) == 12
    assert suite.train("resisc45")[1].tolist() == labels.tolist()
    assert suite.classes("sun397") == ("abbey", "bow window", "zoo")
    assert suite.test("sun397")[1].tolist() == [0] * 3 + [1] * 3 + [2] * 3


def test_heads_are_those_of_the_base(root, suite):
    backbone = Clip()
    opened = backbone.open(suite.base)
    head = suite.head("eurosat")
    recipe = recipes().tasks["eurosat"]
    expected = backbone.zero_shot_head(opened, recipe.classes, recipe.templates)
    assert head.classes == recipe.classes
    assert torch.equal(head.tensors["class_embeddings"], expected.tensors["class_embeddings"])


def test_own_names_and_prompts_replace_the_recipe(tmp_path, no_cache, suite, monkeypatch):
    monkeypatch.setenv("MINGLE_DATA", str(tmp_path))
    write_models(tmp_path, ())
    write_pictures(tmp_path, "sun397")
    (tmp_path / "sun397" / "classes.txt").write_text("zoo\nabbey\nbow window\n")
    (tmp_path / "sun397" / "templates.txt").write_text("here is a {}\n")
    assert suite.classes("sun397") == ("zoo", "abbey", "bow window")
    assert suite.test("sun397")[1].tolist() == [1] * 3 + [2] * 3 + [0] * 3
    backbone = Clip()
    expected = backbone.zero_shot_head(backbone.open(suite.base), suite.classes("sun397"), ["here is a {}"])
    assert torch.equal(suite.head("sun397").tensors["class_embeddings"], expected.tensors["class_embeddings"])


def test_numbered_folders_are_labels(tmp_path, no_cache, suite, monkeypatch):
    monkeypatch.setenv("MINGLE_DATA", str(tmp_path))
    monkeypatch.setitem(CLASSES, "gtsrb", ("00002", "00011", "00001"))
    write_pictures(tmp_path, "gtsrb", each=1)
    assert suite.test("gtsrb")[1].tolist() == [1, 2, 11]


def test_folders_that_are_no_classes(tmp_path, no_cache, suite, monkeypatch):
    monkeypatch.setenv("MINGLE_DATA", str(tmp_path))
    monkeypatch.setitem(CLASSES, "dtd", ("banded", "wooly"))
    write_pictures(tmp_path, "dtd", each=1)
    with pytest.raises(ConfigError, match=r"data of 'dtd' \(test\): 1 of 2 class names are none .*'wooly'"):
        suite.test("dtd")
    (tmp_path / "dtd" / "test" / "banded" / "0.png").rename(tmp_path / "dtd" / "test" / "0.png")
    with pytest.raises(ConfigError, match=r"expected one folder of pictures per class, found .*0\.png"):
        suite.test("dtd")


def test_a_whole_benchmark(root, tmp_path, monkeypatch):
    """Models, heads, seeds and scores of a recipe go through the same code as the shipped suite's."""
    monkeypatch.setitem(recipes().groups, "clip8", ("eurosat", "sun397"))
    options = {"steps": 2, "rank": 4, "seeds_in_all": 8}
    rows = (Contender("average", "average"), Contender("mingle", "mingle", options=options))
    found = run_table(Table("Quick", rows), "clip8", InProcess(), tmp_path, orders=(42,), samples=9)
    cells = {row["label"]: row["cells"][0] for row in found["rows"]}
    assert [cell["status"] for cell in cells.values()] == ["done"] * 4
    assert [len(row) for row in cells["mingle"]["matrix"]] == [1, 2]
    assert cells["mingle"]["seed_samples"]["used"] == [8, 8]
    truths = {example["truth"] for example in found["examples"]}
    assert truths < {*recipes().tasks["eurosat"].classes, "abbey", "bow window", "zoo"}
    json.dumps(found, allow_nan=False)


def test_scored_seeds_are_test_pictures(root, suite, tmp_path):
    run = MergeRun.create(
        tmp_path / "run", "clip8:base", preset="paper", options={"steps": 1, "rank": 4, "seeds_per_class": 1}
    )
    step = run.add("clip8:eurosat", seeds="clip8:eurosat")
    assert step.report["seeds"]["source"] == "clip8:eurosat (test images)"
    assert step.head.classes == recipes().tasks["eurosat"].classes


# --- what is missing


def test_everything_that_is_missing_is_listed_at_once(no_cache, suite, monkeypatch, tmp_path):
    monkeypatch.delenv("MINGLE_DATA", raising=False)
    lines = suite.missing(["sun397", "mnist"])
    assert [line.split(":")[0] for line in lines] == [
        "model openai/clip-vit-base-patch32 (base)",
        "model tanganke/clip-vit-base-patch32_sun397 (sun397)",
        "data of 'sun397' (test and train)",
        "model tanganke/clip-vit-base-patch32_mnist (mnist)",
        "data of 'mnist' (test and train)",
    ]
    assert "`hf download openai/clip-vit-base-patch32`" in lines[0]
    assert "`hf download --repo-type dataset tanganke/sun397`" in lines[2]
    assert "$MINGLE_DATA/sun397" in lines[2]
    with pytest.raises(ConfigError, match="5 to fetch first") as error:
        suite.check(["sun397", "mnist"])
    assert all(line in str(error.value) for line in lines)
    with pytest.raises(ConfigError, match=r"17 to fetch first:\n  - model openai/clip-vit-base-patch32"):
        run_table(Table("Quick", ()), "clip8", InProcess(), tmp_path / "runs", orders=(42,))
    assert not (tmp_path / "runs").exists()


def test_models_and_data_without_an_id_need_a_copy(no_cache, monkeypatch, tmp_path):
    suite = SUITES.get("mtil11")
    monkeypatch.setenv("MINGLE_DATA", str(tmp_path))
    lines = suite.missing(["aircraft"])[1:]
    assert (
        lines[0] == f"model of 'aircraft': none is known on the Hub; put one into {tmp_path}/models/aircraft"
    )
    assert lines[1].startswith("data of 'aircraft' (test and train): a local copy in")
    with pytest.raises(ConfigError, match="none is known on the Hub"):
        suite.checkpoint("aircraft")
    (tmp_path / "models" / "aircraft").mkdir(parents=True)
    assert suite.checkpoint("aircraft") == tmp_path / "models" / "aircraft"
    with pytest.raises(ConfigError, match="data of 'aircraft'"):
        suite.test("aircraft")


def test_half_of_the_data_is_not_enough(tmp_path, no_cache, suite, monkeypatch):
    monkeypatch.setenv("MINGLE_DATA", str(tmp_path))
    write_models(tmp_path, ("eurosat",))
    write_pictures(tmp_path, "eurosat", splits=("test",))
    [line] = suite.missing(["eurosat"])
    assert line.startswith("data of 'eurosat' (train): ")


def test_models_in_the_cache_of_the_hub_are_found(tmp_path, no_cache, suite, monkeypatch):
    monkeypatch.delenv("MINGLE_DATA", raising=False)
    write_models(tmp_path, ("eurosat",))
    base = into_hub_cache(
        no_cache,
        "model",
        "openai/clip-vit-base-patch32",
        tmp_path / "models" / "openai__clip-vit-base-patch32",
    )
    assert suite.base == base
    assert suite.head("eurosat").classes == recipes().tasks["eurosat"].classes
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    assert "holds no .safetensors" in suite.missing([])[0]


def test_command_line_says_where_the_copies_are(shared_root, no_cache, tmp_path, monkeypatch, capsys):
    from mingle import cli

    monkeypatch.setenv("MINGLE_DATA", "nowhere")
    arguments = ["mingle", "--data", shared_root, "init", tmp_path / "run", "--base", "clip8:base"]
    monkeypatch.setattr("sys.argv", list(map(str, arguments)))
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code
    assert "started, method mingle" in capsys.readouterr().out


# --- data sets of the Hub


@pytest.fixture
def hub_data(tmp_path, no_cache, monkeypatch):
    """A data set in the Hub's layout and cache: parquet files and their description."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.delenv("MINGLE_DATA", raising=False)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "arrow"))

    def write(hub_id, names, labels, column="label"):
        from PIL import Image

        folder = tmp_path / "repository"
        (folder / "data").mkdir(parents=True)
        features = datasets.Features({"image": datasets.Image(), column: datasets.ClassLabel(names=names)})
        for number, split in enumerate(("train", "test")):
            images = [Image.new("RGB", (9, 8), (40 * label, number, 7)) for label in labels]
            rows = datasets.Dataset.from_dict({"image": images, column: labels}, features=features)
            rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
        return into_hub_cache(no_cache, "dataset", hub_id, folder)

    return write


def test_data_of_the_hub_is_read_from_its_cache(hub_data, suite):
    names = ["River", "Forest", "AnnualCrop"]
    hub_data("tanganke/eurosat", names, [2, 0, 1, 2])
    assert [line for line in suite.missing(["eurosat"]) if line.startswith("data")] == []
    images, labels = suite.test("eurosat")
    classes = recipes().tasks["eurosat"].classes
    assert [classes[label] for label in labels.tolist()] == ["annual crop", "river", "forest", "annual crop"]
    assert [image.getpixel((0, 0)) for image in images] == [(80, 1, 7), (0, 1, 7), (40, 1, 7), (80, 1, 7)]
    assert suite.seeds("eurosat")[1].getpixel((0, 0)) == (0, 0, 7)


def test_other_names_in_the_same_order(hub_data):
    suite = SUITES.get("clip20")
    hub_data("nateraw/rendered-sst2", ["neg", "pos"], [1, 0], column="labels")
    assert suite.test("rendered-sst2")[1].tolist() == [1, 0]


def test_classes_may_be_those_of_the_data(hub_data, suite):
    hub_data("tanganke/sun397", ["zoo", "bow_window"], [0, 1, 1])
    assert suite.classes("sun397") == ("zoo", "bow window")
    assert suite.test("sun397")[1].tolist() == [0, 1, 1]
