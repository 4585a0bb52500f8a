"""A few test images of every task, and what a merged model says of them."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mingle.backbones import BACKBONES
from mingle.evaluation import ScoredTask
from mingle.evaluation.matrix import predictions
from mingle.state import MergeRun
from mingle.suites import Suite, pick, task_head

EXAMPLES = 2
"""Images of each task."""

THUMBNAIL = 64
"""Longest side of a shown image, in pixels."""


def example_images(suite: Suite, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Task, picture (base64 PNG) and true class of the examples; none for suites of text."""
    backbone = BACKBONES.get(suite.backbone)()
    base = backbone.open(suite.base)
    found: list[dict[str, Any]] = []
    for task in tasks:
        samples, labels = suite.test(task)
        head = task_head(suite, task, backbone, base)
        for place in _places(len(labels)):
            image = _picture(samples[place])
            if image is not None and head is not None:
                found.append({"task": task, "image": image, "truth": head.classes[int(labels[place])]})
    return found


@torch.no_grad()
def example_predictions(run: MergeRun, suite: Suite, tests: Mapping[str, ScoredTask]) -> dict[str, list[str]]:
    """What the last model says of the examples of every task."""
    state, method = run.state, run.method
    shared = None if method.needs_task else method.model(state)
    found: dict[str, list[str]] = {}
    for step in state.steps:
        if step.head is None:
            continue
        model = method.model(state, step.task) if shared is None else shared
        samples, labels = suite.test(step.task)
        batch = tests[step.task].prepare(pick(samples, _places(len(labels))))
        said = predictions(run.backbone, model, step.head, [batch]).tolist()
        found[step.task] = [step.head.classes[i] if i >= 0 else "?" for i in said]
    return found


def _places(count: int) -> list[int]:
    return [count * (2 * i + 1) // (2 * EXAMPLES) for i in range(EXAMPLES)]


def _picture(sample: Tensor | Image.Image | str) -> str | None:
    if isinstance(sample, Tensor):
        sample = Image.fromarray(sample.permute(1, 2, 0).numpy())
    if not isinstance(sample, Image.Image):
        return None
    small = sample.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
