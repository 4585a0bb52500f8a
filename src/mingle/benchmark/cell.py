"""Computing one cell: merge a suite in an order with a method, and score it."""

import hashlib
import random
import shutil
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from mingle.backbones import BACKBONES, Head, Samples, split
from mingle.backbones.base_backbone import FORWARD_BATCH
from mingle.benchmark.examples import example_predictions
from mingle.benchmark.executors import Outcome, failure
from mingle.benchmark.plan import Cell, Corruption, SeedVariation
from mingle.errors import ConfigError, MingleError, SeedsWarning
from mingle.evaluation import Elsewhere, ScoredTask, corrupt, evaluate_run, scored_tasks, vary
from mingle.evaluation.matrix import predictions
from mingle.methods import Base
from mingle.methods.base_method import Progress, labelled, silent
from mingle.provenance import machine, versions
from mingle.state import MergeRun
from mingle.state.lock import hold
from mingle.suites import RawSamples, Suite, open_suite, pick, suite_samples, task_head

TEMPORARY = "mingle-bench-"
LOOKED_AT = 64
"""Samples of a task's test set, and of its seeds, that tell one version of the data from another."""


def compute(cell: Cell, folder: Path | None = None, progress: Progress = silent) -> Outcome:
    """The outcome of a cell; a method that fails gives a reason instead of numbers, and stops nobody else.

    The run is kept if a folder is given.
    """
    torch.set_num_threads(cell.threads)
    try:
        return _compute(cell, folder, progress)
    except MingleError as error:
        # One that was made of a foreign error may be a mistake in the method.
        trace = {} if error.__cause__ is None else {"traceback": traceback.format_exc()}
        return {**failure(str(error)), **trace}
    except Exception as error:
        return {**failure(f"{type(error).__name__}: {error}"), "traceback": traceback.format_exc()}


def _compute(cell: Cell, folder: Path | None, progress: Progress) -> Outcome:
    suite = _suite(cell.suite)
    tasks = tuple(task for task in suite.tasks if task in cell.tasks)
    if combined(checkpoint_fingerprints(cell.suite, tasks)) != cell.fingerprint:
        raise ConfigError(f"suite {cell.suite!r} on this machine is not the one the benchmark started with")
    with temporary_run() if folder is None else nullcontext(folder) as place:
        with warnings.catch_warnings():
            # Seeds of a table may be wrong on purpose; what they cost stands in its numbers.
            warnings.simplefilter("ignore", SeedsWarning)
            run = _merge(cell, suite, place, progress)
        tests = _tests(cell.suite, tasks, cell.samples, cell.corruption)
        scored = {task: tests[task] for task in cell.tasks}
        evaluation = evaluate_run(run, scored, progress=progress)
        examples = example_predictions(run, suite, scored)
    return {
        "status": "done",
        **evaluation.as_dict(),
        "examples": examples,
        "test_hashes": {task: _test_hash(test) for task, test in scored.items()},
        "versions": versions(),
        "machine": machine(),
    }


@contextmanager
def temporary_run() -> Iterator[Path]:
    """Where a run may be while it is needed; what killed processes have left there is removed first."""
    # A folder is locked before there is a run in it, so a run without a lock is nobody's.
    for left in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*/run"):
        with suppress(MingleError), hold(left.parent):
            shutil.rmtree(left.parent, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=TEMPORARY))
    with hold(made):
        try:
            yield made / "run"
        finally:
            shutil.rmtree(made, ignore_errors=True)


def combined(fingerprints: Mapping[str, str]) -> str:
    """One sha256 over the fingerprints of base and checkpoints, in the suite's order."""
    return hashlib.sha256("\n".join(fingerprints.values()).encode()).hexdigest()


@lru_cache(maxsize=4)
def checkpoint_fingerprints(suite: str, tasks: tuple[str, ...]) -> Mapping[str, str]:
    """Fingerprints of the base (``base``), of some tasks' checkpoints (by task) and data (``<task> data``).

    Read once per process.
    """
    opened = _suite(suite)
    backbone = BACKBONES.get(opened.backbone)()
    base = backbone.open(opened.base)
    found = {"base": base.fingerprint}
    found |= {task: backbone.open(opened.checkpoint(task), base).fingerprint for task in tasks}
    for task in tasks:
        found[f"{task} data"] = _data_fingerprint(opened, task, task_head(opened, task, backbone, base))
    return found


def _data_fingerprint(suite: Suite, task: str, head: Head | None) -> str:
    """sha256 over the task's head, its test labels, and 64 evenly spaced samples of test set and seeds."""
    test, labels = suite.test(task)
    digest = hashlib.sha256(str(labels.tolist()).encode())
    for samples in (test, suite.seeds(task)):
        count = len(samples)
        places = sorted({i * count // LOOKED_AT for i in range(LOOKED_AT)}) if count else []
        digest.update(f"{count} {RawSamples(pick(samples, places)).ids()}".encode())
    if head is not None:
        digest.update(str(head.classes).encode())
        for name, tensor in sorted(head.tensors.items()):
            digest.update(name.encode() + tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@lru_cache(maxsize=4)
def _suite(suite: str) -> Suite:
    return open_suite(suite)


@lru_cache(maxsize=2)
def _tests(
    suite: str, tasks: tuple[str, ...], samples: int | None, corruption: Corruption | None
) -> dict[str, ScoredTask]:
    opened = _suite(suite)
    backbone = BACKBONES.get(opened.backbone)()
    base = Base(backbone, backbone.open(opened.base))
    tests = scored_tasks(opened, tasks, base, samples)
    if corruption is None:
        return tests
    return {task: replace(test, samples=_corrupted(test.samples, corruption)) for task, test in tests.items()}


def _merge(cell: Cell, suite: Suite, folder: Path, progress: Progress) -> MergeRun:
    run = MergeRun.create(
        folder,
        suite.base,
        method=cell.method,
        preset=cell.preset,
        options=cell.options,
        backbone=suite.backbone,
        seed=cell.seed,
    )
    for number, task in enumerate(cell.tasks, start=1):
        run.add(
            suite.checkpoint(task),
            name=task,
            seeds=_seeds(cell, suite, task, run),
            head=suite.head(task),
            progress=labelled(progress, f"{task} ({number}/{len(cell.tasks)})"),
        )
    return run


def _seeds(cell: Cell, suite: Suite, task: str, run: MergeRun) -> RawSamples:
    if run.method.needs_labels:
        samples, labels = suite.train(task)
        found = RawSamples(samples, labels, source=f"{suite.name}:{task} (training data)")
    else:
        found = suite_samples(suite, task, scored=run.method.scored_seeds)
    if cell.corruption is not None:
        found = replace(found, samples=_corrupted(found.samples, cell.corruption))
    return found if cell.variation is None else _varied(found, cell.variation, cell, suite, task, run.base)


def _varied(
    found: RawSamples, variation: SeedVariation, cell: Cell, suite: Suite, task: str, base: Base
) -> RawSamples:
    """The pool under a variation. Wrong seeds are those of the suite's next task, by its own order."""
    pool, tasks, backbone = found.samples, suite.tasks, base.backbone

    def other() -> Samples:
        return suite.seeds(tasks[(tasks.index(task) + 1) % len(tasks)])

    def classes() -> Tensor:
        head = task_head(suite, task, backbone, base.checkpoint)
        if head is None:
            raise ConfigError(f"suite {suite.name!r}: task {task!r} has no head to tell its classes by")
        checkpoint = backbone.open(suite.checkpoint(task), base.checkpoint)
        batches = split(backbone.prepare(pool, base.checkpoint), FORWARD_BATCH)
        return predictions(backbone, backbone.build(checkpoint, base.checkpoint), head, batches)

    draws = random.Random(f"{cell.seed}/{task}")
    varied = vary(pool, variation.kind, variation.amount, draws, Elsewhere(other, classes))
    source = f"{found.source}, {variation.kind} {variation.amount:g}"
    # Labels are of the pool as it was.
    return RawSamples(varied, source=source)


def _corrupted(samples: Samples, corruption: Corruption) -> Samples:
    return corrupt(samples, corruption.name, corruption.severity)


def _test_hash(test: ScoredTask) -> str:
    return hashlib.sha256("\n".join([*test.ids, str(test.labels.tolist())]).encode()).hexdigest()[:16]
