"""Tiny random models shared by all tests. Nothing is downloaded."""

import json
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from hypothesis import settings
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.utils import logging

from mingle.backbones.clip import Clip
from mingle.methods import Base

torch.set_num_threads(1)
logging.disable_progress_bar()
# The same examples every time; `--hypothesis-profile=explore` looks for new ones.
settings.register_profile("fixed", deadline=None, max_examples=40, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile("fixed")

CLASSES = 4
CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
    "projection_dim": 24,
}


def write_checkpoint(folder, tensors, config, seed):
    """A model folder with a random head of four classes."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    labels = {str(i): f"class{i}" for i in range(CLASSES)}
    (folder / "config.json").write_text(json.dumps({**config, "id2label": labels}))
    head = {
        "class_embeddings": torch.randn(CLASSES, CONFIG["projection_dim"], generator=generator),
        "logit_scale": torch.tensor(10.0),
    }
    save_file(head, folder / "head.safetensors")


def tensors_of(state):
    """Every tensor that a method keeps, by task, file and name; all are read."""
    return {
        (step.task, stem, name): tensor
        for step in state.steps
        for stem, tensors in step.tensors.items()
        for name, tensor in tensors.items()
    }


def perturbed(tensors, seed, scale=0.05):
    """The tensors plus noise: a stand-in for fine-tuning."""
    generator = torch.Generator().manual_seed(seed)
    return {n: t + scale * torch.randn(t.shape, generator=generator) for n, t in sorted(tensors.items())}


def write_zoo(root):
    """A folder with ``base`` and checkpoints ``task1`` … ``task4`` of a tiny random CLIP vision tower."""
    torch.manual_seed(0)
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**CONFIG))
    model.save_pretrained(root / "base")
    tensors = load_file(root / "base" / "model.safetensors")
    config = json.loads((root / "base" / "config.json").read_text())
    for seed in range(1, 5):
        write_checkpoint(root / f"task{seed}", perturbed(tensors, seed), config, seed)
    return root


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """What ``write_zoo`` writes. Read only."""
    return write_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def base(zoo):
    """The tiny base in float32."""
    backbone = Clip()
    return Base(backbone, backbone.open(zoo / "base"))


@pytest.fixture
def images():
    """Forty seeded uint8 images of the tiny model's size."""
    return torch.randint(
        0, 256, (40, 3, 16, 16), generator=torch.Generator().manual_seed(5), dtype=torch.uint8
    )


def write_suite(folder, zoo):
    """The tiny zoo as a suite folder of a user's own: three tasks, random data."""
    (folder / "data").mkdir(parents=True)
    tasks = ["task1", "task2", "task3"]
    for name in ["base", *tasks]:
        (folder / name).symlink_to(zoo / name)
    generator = torch.Generator().manual_seed(0)
    for task in tasks:
        data = {
            "test_images": torch.randint(0, 256, (24, 3, 16, 16), generator=generator, dtype=torch.uint8),
            "test_labels": torch.arange(24) % 4,
            "seed_images": torch.randint(0, 256, (20, 3, 16, 16), generator=generator, dtype=torch.uint8),
        }
        save_file(data, folder / "data" / f"{task}.safetensors")
    description = {"name": "own", "schema": 1, "backbone": "clip", "tasks": tasks, "base": "base"}
    (folder / "suite.json").write_text(json.dumps(description))
    return folder


@pytest.fixture(scope="session")
def shared_suite(zoo, tmp_path_factory):
    """What ``write_suite`` writes. Read only."""
    return write_suite(tmp_path_factory.mktemp("suite"), zoo)
