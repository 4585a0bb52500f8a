"""Merging one suite with several methods in the same order, and scoring all of them the same way."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from mingle.backbones import BACKBONES
from mingle.benchmark.results_file import RESULTS_SCHEMA
from mingle.errors import ConfigError
from mingle.evaluation import Evaluation, ScoredTask, evaluate_run, individual_accuracies, scored_tasks
from mingle.evaluation.matrix import predictions
from mingle.methods import Base
from mingle.methods.base_method import Progress, silent
from mingle.provenance import machine, versions
from mingle.state import MergeRun
from mingle.suites import FolderSuite, suite_samples


@dataclass(frozen=True)
class Contender:
    """One line of the table."""

    label: str
    method: str
    preset: str = "default"
    options: Mapping[str, Any] = field(default_factory=dict)


DEMO = (
    Contender("base alone", "pretrained"),
    Contender("individual models", "individual"),
    Contender("average", "average"),
    Contender("task arithmetic", "task_arithmetic"),
    Contender("mingle", "mingle"),
    Contender("mingle (reference)", "mingle", "reference"),
)


def compare(
    suite: FolderSuite,
    contenders: Sequence[Contender],
    folder: Path,
    *,
    order: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 42,
    command: str = "",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Merges and scores the suite with every contender; returns the results as plain values.

    Every run is kept in ``folder``. ``limit``: score at most that many test samples per task.
    """
    tasks = tuple(order or suite.tasks)
    backbone = BACKBONES.get(suite.backbone)()
    base = Base(backbone, backbone.open(suite.base))
    tests = scored_tasks(suite, tasks, base, limit)
    individual = individual_accuracies(suite, base, tests, progress)
    runs: dict[str, MergeRun] = {}
    evaluations: list[Evaluation] = []
    for number, contender in enumerate(contenders, start=1):
        prefix = f"[{number}/{len(contenders)}] {contender.label}"
        run = _merge(suite, contender, folder, tasks, seed, _labelled(progress, prefix))
        runs[contender.label] = run
        evaluations.append(
            evaluate_run(run, tests, individual, label=contender.label, progress=_labelled(progress, prefix))
        )
    return {
        "schema": RESULTS_SCHEMA,
        "suite": suite.name,
        "order": list(tasks),
        "samples_per_task": max(len(test.labels) for test in tests.values()),
        "test_samples": max(len(suite.test(task)[1]) for task in tasks),
        "versions": versions(),
        "machine": machine(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "command": command,
        "base_fingerprint": base.checkpoint.fingerprint,
        "individual": [individual[task] for task in tasks],
        "rows": [evaluation.as_dict() for evaluation in evaluations],
        "examples": _examples(suite, runs, tests),
    }


def _merge(
    suite: FolderSuite,
    contender: Contender,
    folder: Path,
    tasks: Sequence[str],
    seed: int,
    progress: Progress,
) -> MergeRun:
    path = folder / contender.label.replace(" ", "-").replace("(", "").replace(")", "")
    if path.exists():
        raise ConfigError(f"{path}: already there; remove it or choose another folder")
    run = MergeRun.create(
        path,
        suite.base,
        method=contender.method,
        preset=contender.preset,
        options=contender.options,
        backbone=suite.backbone,
        seed=seed,
    )
    for task in tasks:
        run.add(
            suite.checkpoint(task),
            name=task,
            seeds=suite_samples(suite, task, scored=run.method.scored_seeds),
            progress=_labelled(progress, task),
        )
    return run


def _examples(
    suite: FolderSuite, runs: Mapping[str, MergeRun], tests: Mapping[str, ScoredTask], per_task: int = 2
) -> list[dict[str, Any]]:
    """A few test images of every task with what each contender's final model says."""
    examples: list[dict[str, Any]] = []
    for task, test in tests.items():
        places = [len(test.labels) * (2 * i + 1) // (2 * per_task) for i in range(per_task)]
        images, _ = suite.test(task)
        stride = len(images) / len(test.labels)
        found: dict[str, list[int]] = {}
        classes: tuple[str, ...] = ()
        for label, run in runs.items():
            head = run.state.step(task).head
            if head is None:
                continue
            classes = head.classes
            model = run.model(task=task if run.method.needs_task else None)
            batch = {name: tensor[places] for name, tensor in test.batch.items()}
            found[label] = predictions(run.backbone, model, head, batch).tolist()
        for number, place in enumerate(places):
            examples.append(
                {
                    "task": task,
                    "image": _png(images[int(place * stride)]),
                    "truth": classes[int(test.labels[place])],
                    "predictions": {label: classes[row[number]] for label, row in found.items()},
                }
            )
    return examples


def _png(image: Tensor) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _labelled(progress: Progress, prefix: str) -> Progress:
    def report(what: str, done: int, total: int) -> None:
        progress(f"{prefix}: {what}", done, total)

    return report
