"""Runs to export: small, with gates that are far from 0, made once."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import mingle
from tests.backbones.t5 import write_t5
from tests.conftest import CONFIG, perturbed, write_checkpoint

TASKS = ("task1", "task2", "task3")
STRONG = {"steps": 2, "rank": 28, "gate_init": "normal", "lr": 0.05, "vectors": "gated"}


@pytest.fixture(scope="session")
def narrow(tmp_path_factory):
    """A zoo whose MLPs are narrower than rank 28, so that not all experts have the same rank."""
    root = tmp_path_factory.mktemp("narrow")
    torch.manual_seed(1)
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**CONFIG | {"intermediate_size": 20}))
    model.save_pretrained(root / "base")
    tensors = load_file(root / "base" / "model.safetensors")
    config = json.loads((root / "base" / "config.json").read_text())
    for seed, task in enumerate(TASKS):
        write_checkpoint(root / task, perturbed(tensors, seed), config, seed)
    return root


@pytest.fixture(scope="session")
def pixels():
    """Twelve seeded uint8 images."""
    return torch.randint(
        0, 256, (12, 3, 16, 16), generator=torch.Generator().manual_seed(7), dtype=torch.uint8
    )


def merge(folder, zoo, pixels, method, *, tasks=TASKS, **options):
    run = mingle.MergeRun.create(folder, zoo / "base", method=method, options=options)
    for number, task in enumerate(tasks):
        # Of the same seeds all tasks would have the same gates.
        run.add(zoo / task, seeds=pixels[number::3])
    return run


@pytest.fixture(scope="session")
def gated(narrow, pixels, tmp_path_factory):
    """A run of mingle. Read only."""
    return merge(tmp_path_factory.mktemp("gated") / "run", narrow, pixels, "mingle", **STRONG)


@pytest.fixture(scope="session")
def averaged(narrow, pixels, tmp_path_factory):
    """A run of a method with one set of weights. Read only."""
    return merge(tmp_path_factory.mktemp("averaged") / "run", narrow, pixels, "average")


@pytest.fixture(scope="session")
def answering(tmp_path_factory):
    """Averaged models that write text. Read only."""
    root = write_t5(tmp_path_factory.mktemp("t5"), untied=True, steps=0, tasks=2)
    run = mingle.MergeRun.create(root / "run", root / "base", method="average", backbone="seq2seq")
    for task in ("task1", "task2"):
        run.add(root / task)
    return run
