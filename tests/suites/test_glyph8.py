"""The shipped suite keeps its promises, measured from the files that ship."""

import pytest
import torch

from mingle.backbones.clip import Clip
from mingle.evaluation import accuracy, individual_accuracies, scored_tasks
from mingle.export.card import licence
from mingle.methods import Base
from mingle.suites import SUITES, load_samples


@pytest.fixture(scope="module")
def suite():
    return SUITES.get("glyph8")


@pytest.fixture(scope="module")
def measured(suite):
    backbone = Clip()
    base = Base(backbone, backbone.open(suite.base))
    tests = scored_tasks(suite, suite.tasks, base)
    model = base.model()
    heads = {task: backbone.head(backbone.open(suite.checkpoint(task))) for task in suite.tasks}
    alone = {task: accuracy(backbone, model, heads[task], tests[task]) for task in suite.tasks}
    return alone, individual_accuracies(suite, base, tests)


def test_there_is_something_to_merge_and_something_to_forget(suite, measured):
    alone, individual = measured
    assert sum(alone.values()) / 8 <= 0.5
    assert sum(individual.values()) / 8 >= 0.8
    assert min(individual.values()) >= 0.6
    assert min(individual[task] - alone[task] for task in suite.tasks) >= 0.15


def test_the_figures_in_the_description_are_what_ships(suite, measured):
    for stored, found in zip(("base_accuracy", "individual_accuracy"), measured, strict=True):
        for task in suite.tasks:
            # One image of 360 may fall the other way with another way of summing.
            assert suite.description[stored][task] == pytest.approx(found[task], abs=0.006)


@pytest.mark.parametrize("task", SUITES.get("glyph8").tasks)
def test_data_is_balanced_separate_and_of_the_right_form(suite, task):
    images, labels = suite.test(task)
    seeds = suite.seeds(task)
    assert images.dtype == seeds.dtype == torch.uint8
    assert images.shape[1:] == seeds.shape[1:] == (3, 32, 32)
    assert 300 <= len(images) <= 400
    assert len(seeds) == 150
    counts = labels.bincount()
    assert 10 <= len(counts) <= 30
    assert counts.max() - counts.min() <= 1
    assert not set(load_samples(seeds).ids()) & set(load_samples(images).ids())


def test_every_checkpoint_is_a_full_fine_tuning_of_the_base(suite):
    backbone = Clip()
    base = backbone.open(suite.base)
    for task in suite.tasks:
        checkpoint = backbone.open(suite.checkpoint(task))
        name = "vision_model.encoder.layers.3.mlp.fc1.weight"
        delta = checkpoint.tensor(name, torch.float64) - base.tensor(name, torch.float64)
        assert torch.linalg.matrix_rank(delta) == min(delta.shape)


def test_size_and_licences(suite):
    size = sum(path.stat().st_size for path in suite.folder.rglob("*") if path.is_file())
    assert size <= 60e6
    assert "licen" in (suite.folder / "LICENSES.md").read_text("utf-8").lower()
    found = [licence(f"glyph8:{task}") for task in ("base", "mnist", "flags")]
    assert found == ["other", "as the base; sources: MIT", "other"]
