"""A merged run of the tiny models with test samples for each task."""

from functools import cache, partial

import pytest
import torch

from mingle.backbones.clip import Clip
from mingle.evaluation import ScoredTask
from mingle.methods import METHODS, Arrival, Base, SeedPool

from ..suites.conftest import TASKS, random_images, write_suite

QUICK = {"steps": 3, "rank": 4, "lr": 3e-3}


@pytest.fixture
def suite_folder(tmp_path, zoo):
    return write_suite(tmp_path / "tiny", zoo)


@pytest.fixture(scope="package")
def base(zoo):
    """The tiny base, opened once for all tests of the package."""
    backbone = Clip()
    return Base(backbone, backbone.open(zoo / "base"))


@pytest.fixture(scope="package")
def tests(base, zoo):
    """Different numbers of samples per task, labels that the fine-tuned models get right half of the time."""
    found = {}
    for number, task in enumerate(TASKS):
        images = random_images(100 + number, 7 + 4 * number)
        batch = base.backbone.prepare(images, base.checkpoint)
        checkpoint = base.backbone.open(zoo / task)
        with torch.no_grad():
            features = base.backbone.features(base.backbone.build(checkpoint), batch)
        labels = base.backbone.classify(features, base.backbone.head(checkpoint)).argmax(-1)
        labels[::2] = torch.arange(len(labels[::2])) % 4
        prepare = partial(base.backbone.prepare, base=base.checkpoint)
        found[task] = ScoredTask(task, images, labels, prepare)
    return found


@pytest.fixture(scope="package")
def merged(base, zoo):
    """Merges the tasks with a method, once for every set of options, and returns (method, state)."""

    @cache
    def run(name, preset="default", **changes):
        cls = METHODS.get(name)
        quick = {key: value for key, value in QUICK.items() if key in cls.options_type.model_fields}
        method = cls.with_preset(preset, quick | changes)
        state = method.init(base)
        pool = SeedPool(base.backbone.prepare(random_images(1, 12), base.checkpoint), torch.arange(12) % 4)
        for task in TASKS:
            checkpoint = base.backbone.open(zoo / task)
            head = base.backbone.head(checkpoint)
            state = method.update(state, Arrival(task, checkpoint, head, pool))
        return method, state

    return run
