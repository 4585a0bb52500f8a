"""Scoring a merged model task by task, step by step, and on all tasks at once.

Shapes: N test samples of a task; features (N, d); logits (N, C).
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from mingle.backbones import Backbone, Batch, Head, Samples
from mingle.errors import CheckpointError
from mingle.methods import Base, Method, State
from mingle.methods.base_method import Progress, silent
from mingle.suites import RawSamples, Suite, pick

BATCH = 128
"""Samples per forward pass; with batch gates the scores depend on it."""


@dataclass(frozen=True)
class ScoredTask:
    """Scored samples of one task, as they came; ``prepare`` makes a batch for the model of them."""

    task: str
    samples: Samples
    labels: Tensor
    prepare: Callable[[Samples], Batch]

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """A content hash of every sample; reads them all."""
        return RawSamples(self.samples).ids()

    @property
    def batch(self) -> Batch:
        """All samples, ready for the model."""
        return self.prepare(self.samples)

    def batches(self, size: int) -> Iterator[Batch]:
        """Consecutive parts of at most ``size`` samples, each prepared when its turn comes."""
        for start in range(0, len(self.labels), size):
            yield self.prepare(self.samples[start : start + size])

    def take(self, index: Sequence[int]) -> "ScoredTask":
        """Some of the samples."""
        labels = self.labels[torch.as_tensor(index, dtype=torch.int64)]
        return replace(self, samples=pick(self.samples, index), labels=labels)

    def without(self, seeds: Collection[str]) -> "ScoredTask":
        """The test set without the samples that were used as seeds."""
        if not seeds:
            return self
        kept = [i for i, sample in enumerate(self.ids) if sample not in seeds]
        return self if len(kept) == len(self.ids) else self.take(kept)


def scored_tasks(
    suite: Suite, tasks: Iterable[str], base: Base, limit: int | None = None
) -> dict[str, ScoredTask]:
    """The suite's tests of some tasks.

    ``limit``: at most that many samples per task, evenly spaced over the whole set, the same every time.
    """
    prepare = partial(base.backbone.prepare, base=base.checkpoint)
    found: dict[str, ScoredTask] = {}
    for task in tasks:
        samples, labels = suite.test(task)
        test = ScoredTask(task, samples, labels, prepare)
        if limit is not None and limit < len(labels):
            test = test.take([i * len(labels) // limit for i in range(limit)])
        found[task] = test
    return found


@torch.no_grad()
def predictions(backbone: Backbone, model: nn.Module, head: Head, batches: Iterable[Batch]) -> Tensor:
    """The predicted class of every sample, −1 for none: (N,)."""
    return torch.cat([backbone.predict(model, part, head) for part in batches])


def accuracy(backbone: Backbone, model: nn.Module, head: Head, test: ScoredTask) -> float:
    """The share of a task's test samples that get their own class."""
    hits = predictions(backbone, model, head, test.batches(BATCH)) == test.labels
    return float(hits.float().mean())


def accuracy_matrix(
    method: Method[Any], state: State, tests: Mapping[str, ScoredTask], progress: Progress = silent
) -> list[list[float]]:
    """``a[t][i]`` for i ≤ t: the model as it was after every step, scored on every task merged by then.

    A method that cannot forget is scored once, with its final state. Raises CheckpointError for a task whose
    head does not have the classes of its test samples.
    """
    tasks = state.tasks
    for step in state.steps:
        head = _head(step.task, step.head)
        head.check_labels(tests[step.task].labels, f"test samples of {step.task!r}")
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


def held_out_accuracy(
    method: Method[Any], state: State, tests: Mapping[str, ScoredTask], merged: int
) -> float | None:
    """Mean accuracy on all later tasks of the model that has merged the first so many.

    None where there are none, and for a method that has to be told the task.
    """
    later = state.steps[merged:]
    if not later or method.needs_task:
        return None
    model = method.model(state.prefix(merged))
    scores = [
        accuracy(state.base.backbone, model, _head(step.task, step.head), tests[step.task]) for step in later
    ]
    return sum(scores) / len(scores)


@torch.no_grad()
def mixed_accuracy(
    method: Method[Any],
    state: State,
    tests: Mapping[str, ScoredTask],
    *,
    seed: int = 0,
    model: nn.Module | None = None,
) -> float | None:
    """Mean task accuracy of the final model on a stream that interleaves all tasks in the same batches.

    Equal to ACC for per-sample gates. None for a method that has to be told the task. ``model``: the
    state's model, where it is built already.
    """
    if method.needs_task:
        return None
    backbone, model = state.base.backbone, model or method.model(state)
    sets = [tests[task] for task in state.tasks]
    owner = torch.cat([torch.full((len(test.labels),), i) for i, test in enumerate(sets)])
    place = torch.cat([torch.arange(len(test.labels)) for test in sets])
    labels = torch.cat([test.labels for test in sets])
    order = torch.randperm(len(owner), generator=torch.Generator().manual_seed(seed))
    hits = torch.zeros(len(owner))
    for index in torch.split(order, BATCH):
        mixed = [
            sets[i].samples[j] for i, j in zip(owner[index].tolist(), place[index].tolist(), strict=True)
        ]
        features = backbone.features(model, sets[0].prepare(_stacked(mixed)))
        for i, step in enumerate(state.steps):
            mine = owner[index] == i
            found = backbone.decide(features[mine], _head(step.task, step.head))
            hits[index[mine]] = (found == labels[index[mine]]).float()
    return float(torch.stack([hits[owner == i].mean() for i in range(len(sets))]).mean())


def _stacked(samples: list[Any]) -> Samples:
    return torch.stack(samples) if isinstance(samples[0], Tensor) else samples


def _head(task: str, head: Head | None) -> Head:
    if head is None:
        raise CheckpointError(f"task {task!r} was added without a class head; it cannot be scored")
    return head
