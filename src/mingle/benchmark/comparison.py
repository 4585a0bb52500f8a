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
from mingle.suites import Suite, suite_samples

EXAMPLES = 2
"""Sample images of each task that the results carry."""


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
    suite: Suite,
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
    suite.check(tasks)
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
        "examples": _examples(runs, tests),
    }


def _merge(
    suite: Suite,
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
            head=suite.head(task),
            seeds=suite_samples(suite, task, scored=run.method.scored_seeds),
            progress=_labelled(progress, task),
        )
    return run


def _examples(runs: Mapping[str, MergeRun], tests: Mapping[str, ScoredTask]) -> list[dict[str, Any]]:
    """A few test images of every task with what each contender's final model says."""
    heads = {step.task: step.head for step in next(iter(runs.values())).state.steps if step.head is not None}
    said = {label: _final_predictions(run, tests) for label, run in runs.items()}
    examples: list[dict[str, Any]] = []
    for task, test in tests.items():
        for number, place in enumerate(_places(test)):
            sample = test.samples[place]
            if isinstance(sample, str):
                continue  # the page shows pictures
            shown = {label: found[task][number] for label, found in said.items()}
            truth = int(test.labels[place])
            examples.append(
                {
                    "task": task,
                    "image": _png(sample),
                    "truth": heads[task].classes[truth],
                    "predictions": shown,
                }
            )
    return examples


def _final_predictions(run: MergeRun, tests: Mapping[str, ScoredTask]) -> dict[str, list[str]]:
    state, method = run.state, run.method
    shared = None if method.needs_task else method.model(state)
    found: dict[str, list[str]] = {}
    for step in state.steps:
        if step.head is None:
            continue
        model = method.model(state, step.task) if shared is None else shared
        shown = tests[step.task].take(_places(tests[step.task]))
        guesses = predictions(run.backbone, model, step.head, [shown.batch]).tolist()
        found[step.task] = [step.head.classes[guess] for guess in guesses]
    return found


def _places(test: ScoredTask) -> list[int]:
    return [len(test.labels) * (2 * i + 1) // (2 * EXAMPLES) for i in range(EXAMPLES)]


def _png(sample: Tensor | Image.Image) -> str:
    buffer = io.BytesIO()
    image = Image.fromarray(sample.permute(1, 2, 0).numpy()) if isinstance(sample, Tensor) else sample
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _labelled(progress: Progress, prefix: str) -> Progress:
    def report(what: str, done: int, total: int) -> None:
        progress(f"{prefix}: {what}", done, total)

    return report
