"""Write a suite's folder: the shipped eight tasks as they are, the others from the build folder."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from mingle.suites._glyph.build_folder import BuildFolder
from mingle.suites._glyph.recipe import suite_tasks
from mingle.suites._glyph.tower import accuracy, load_tower

SHIPPED = Path(__file__).parents[1] / "glyph8"


def score(base: nn.Module, model: Path, data: Path) -> tuple[float, float]:
    """Accuracy of the base and of the task's own model on its test images, both with the model's head."""
    stored = load_file(data)
    head = load_file(model / "head.safetensors")["class_embeddings"]
    images, labels = stored["test_images"], stored["test_labels"]
    alone = accuracy(base, head, images, labels)
    return round(alone, 4), round(accuracy(load_tower(model), head, images, labels), 4)


def package(place: BuildFolder, name: str) -> None:
    """Makes ``place.suite(name)``, whole or not at all, with the accuracies measured on what it holds."""
    description: dict[str, Any] = json.loads((SHIPPED / "suite.json").read_text("utf-8"))
    tasks, target = suite_tasks(name), place.suite(name)
    partial = target.with_name(f"{name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(SHIPPED, partial)
    base = load_tower(SHIPPED / "base")
    for task in tasks:
        if task in description["tasks"]:
            continue
        shutil.copytree(place.model(task), partial / task)
        shutil.copy(place.data(task), partial / "data")
        alone, own = score(base, place.model(task), place.data(task))
        description["base_accuracy"][task], description["individual_accuracy"][task] = alone, own
    description |= {"name": name, "tasks": list(tasks)}
    (partial / "suite.json").write_text(json.dumps(description, indent=2) + "\n", "utf-8")
    for document in ("MODEL_CARD.md", "LICENSES.md"):
        (partial / document).rename(partial / f"glyph8-{document}")
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)
