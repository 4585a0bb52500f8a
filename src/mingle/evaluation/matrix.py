"""Scoring a merged model task by task, step by step, and on all tasks at once.

Shapes: N test samples of a task; features (N, d); logits (N, C).
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mingle.backbones import Backbone, Batch, Head, split, take
from mingle.errors import CheckpointError
from mingle.methods import Base, Method, State
from mingle.methods.base_method import Progress, silent
from mingle.suites import FolderSuite, load_samples

BATCH = 128
"""Samples per forward pass; with batch gates the scores depend on it."""


@dataclass(frozen=True)
class ScoredTask:
    """Scored samples of one task, with a content hash for each."""

    task: str
    batch: Batch
    labels: Tensor
    ids: tuple[str, ...]

    def without(self, seeds: Collection[str]) -> "ScoredTask":
        """The test set without the samples that were used as seeds."""
        kept = [i for i, sample in enumerate(self.ids) if sample not in seeds]
        if len(kept) == len(self.ids):
            return self
        index = torch.tensor(kept, dtype=torch.int64)
        return ScoredTask(
            self.task, take(self.batch, index), self.labels[index], tuple(self.ids[i] for i in kept)
        )


def scored_tasks(
    suite: FolderSuite, tasks: Iterable[str], base: Base, limit: int | None = None
) -> dict[str, ScoredTask]:
    """The suite's tests of some tasks, ready for the model.

    ``limit``: at most that many samples per task, evenly spaced over the whole set, the same every time.
    """
    found: dict[str, ScoredTask] = {}
    for task in tasks:
        images, labels = suite.test(task)
        if limit is not None and limit < len(labels):
            index = torch.arange(limit) * len(labels) // limit
            images, labels = images[index], labels[index]
        ids = load_samples(images).ids()
        found[task] = ScoredTask(task, base.backbone.prepare(images, base.checkpoint), labels, ids)
    return found


@torch.no_grad()
def predictions(backbone: Backbone, model: nn.Module, head: Head, batch: Batch) -> Tensor:
    """The predicted class of every sample: (N,)."""
    return torch.cat(
        [backbone.classify(backbone.features(model, part), head).argmax(-1) for part in split(batch, BATCH)]
    )


def accuracy(backbone: Backbone, model: nn.Module, head: Head, test: ScoredTask) -> float:
    """The share of a task's test samples that get their own class."""
    hits = predictions(backbone, model, head, test.batch) == test.labels
    return float(hits.float().mean())


def accuracy_matrix(
    method: Method[Any], state: State, tests: Mapping[str, ScoredTask], progress: Progress = silent
) -> list[list[float]]:
    """``a[t][i]`` for i ≤ t: the model as it was after every step, scored on every task merged by then.

    A method that cannot forget is scored once, with its final state.
    """
    tasks = state.tasks
    total = len(tasks) * (len(tasks) + 1) // 2 if method.forgets else len(tasks)
    rows: list[list[float]] = []
    done = 0
    for t in range(1, len(tasks) + 1) if method.forgets else [len(tasks)]:
        current = state.prefix(t)
        shared = None if method.needs_task else method.model(current)
        row: list[float] = []
        for step in current.steps:
            model = method.model(current, step.task) if shared is None else shared
            row.append(accuracy(state.base.backbone, model, _head(step.task, step.head), tests[step.task]))
            done += 1
            progress(f"scoring step {t}", done, total)
        rows.append(row)
    return rows if method.forgets else [rows[0][:t] for t in range(1, len(tasks) + 1)]


@torch.no_grad()
def mixed_accuracy(
    method: Method[Any], state: State, tests: Mapping[str, ScoredTask], *, seed: int = 0
) -> float | None:
    """Mean task accuracy of the final model on a stream that interleaves all tasks in the same batches.

    Equal to ACC for per-sample gates. None for a method that has to be told the task.
    """
    if method.needs_task:
        return None
    backbone, model = state.base.backbone, method.model(state)
    sets = [tests[task] for task in state.tasks]
    stream = {name: torch.cat([test.batch[name] for test in sets]) for name in sets[0].batch}
    owner = torch.cat([torch.full((len(test.labels),), i) for i, test in enumerate(sets)])
    labels = torch.cat([test.labels for test in sets])
    order = torch.randperm(len(owner), generator=torch.Generator().manual_seed(seed))
    hits = torch.zeros(len(owner))
    for index in torch.split(order, BATCH):
        features = backbone.features(model, take(stream, index))
        for i, step in enumerate(state.steps):
            mine = owner[index] == i
            found = backbone.classify(features[mine], _head(step.task, step.head)).argmax(-1)
            hits[index[mine]] = (found == labels[index[mine]]).float()
    return float(torch.stack([hits[owner == i].mean() for i in range(len(sets))]).mean())


def _head(task: str, head: Head | None) -> Head:
    if head is None:
        raise CheckpointError(f"task {task!r} was added without a class head; it cannot be scored")
    return head
