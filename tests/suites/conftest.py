"""A suite in a folder, made of the tiny models and of random images."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

TASKS = ("task1", "task2", "task3")


def random_images(seed, number):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (number, 3, 16, 16), generator=generator, dtype=torch.uint8)


def write_suite(folder, zoo, tests=24, seeds=12):
    """``suite.json``, a base, three tasks with labelled test images and unlabelled seed images."""
    shutil.copytree(zoo / "base", folder / "base")
    (folder / "data").mkdir()
    for number, task in enumerate(TASKS):
        shutil.copytree(zoo / task, folder / task)
        data = {
            "test_images": random_images(100 + number, tests),
            "test_labels": torch.arange(tests) % 4,
            "seed_images": random_images(200 + number, seeds),
        }
        save_file(data, folder / "data" / f"{task}.safetensors")
    description = {"schema": 1, "name": "tiny", "backbone": "clip", "base": "base", "tasks": list(TASKS)}
    (folder / "suite.json").write_text(json.dumps(description))
    return folder


@pytest.fixture
def suite_folder(tmp_path, zoo):
    return write_suite(tmp_path / "tiny", zoo)
