"""Forty labelled samples, arrivals with them, and whole merges of the tiny zoo."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from mingle.methods import Arrival, SeedPool

TASKS = ("task1", "task2", "task3")


@pytest.fixture
def pool(base, images):
    batch = base.backbone.prepare(images, base.checkpoint)
    return SeedPool(batch, torch.arange(40) % 4, tuple(f"id{i}" for i in range(40)))


@pytest.fixture
def arrive(base, zoo, pool):
    def arrival(task, **changes):
        checkpoint = base.backbone.open(zoo / task)
        given = Arrival(task, checkpoint, base.backbone.head(checkpoint), pool, seed=3)
        return dataclasses.replace(given, **changes)

    return arrival


@pytest.fixture
def merge(base, arrive):
    def run(method, tasks=TASKS, **changes):
        state = method.init(base)
        for task in tasks:
            state = method.update(state, arrive(task, **changes))
        return state

    return run


@pytest.fixture(scope="module")
def stored(zoo):
    return {name: load_file(zoo / name / "model.safetensors") for name in ("base", *TASKS)}
