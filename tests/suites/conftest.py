"""A suite in a folder, made of the tiny models and of random images."""

import json
import shutil
from concurrent.futures import Future

import pytest
import torch
from safetensors.torch import save_file

from mingle.suites._build import workers

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


class InlinePool:
    """Stands in for the processes: does the work at once, here."""

    def __init__(self, jobs, context, initializer):
        self.jobs = jobs

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def submit(self, function, *arguments):
        future = Future()
        future.set_result(function(*arguments))
        return future

    def shutdown(self, **options):
        return None


@pytest.fixture
def inline(monkeypatch):
    """Fine-tunes in the process of the test."""
    monkeypatch.setattr(workers, "ProcessPoolExecutor", InlinePool)
