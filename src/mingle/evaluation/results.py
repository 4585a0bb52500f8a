"""One evaluation of one run, with everything that is needed to trust and to repeat it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mingle.backbones import Head
from mingle.errors import ConfigError
from mingle.evaluation.final import final_metrics
from mingle.evaluation.gates import gate_activations
from mingle.evaluation.matrix import (
    ScoredTask,
    accuracy,
    accuracy_matrix,
    held_out_accuracy,
    mixed_accuracy,
)
from mingle.evaluation.metrics import (
    Matrix,
    average_accuracy,
    backward_transfer,
    forward_transfer,
    h_score,
    normalised_accuracy,
)
from mingle.methods import Base, Method, State
from mingle.methods.base_method import Progress, silent
from mingle.state import MergeRun
from mingle.suites import Suite, task_head


@dataclass(frozen=True)
class Evaluation:
    """The accuracy matrix of a run and what follows from it; accuracies in 0…1."""

    label: str
    method: str
    preset: str
    one_model: bool
    tasks: tuple[str, ...]
    settings: Mapping[str, Any]
    matrix: list[list[float]]
    metrics: Mapping[str, float | None]
    samples_per_task: int
    step_seconds: list[float]
    bytes: int
    cost: Mapping[str, float]
    seed_samples: Mapping[str, Any] | None
    energy: list[Mapping[str, Any]] | None
    losses: list[list[float]] | None
    gates: Mapping[str, Any] | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def individual_accuracies(
    suite: Suite, base: Base, tests: Mapping[str, ScoredTask], progress: Progress = silent
) -> dict[str, float]:
    """Accuracy of every task's own fine-tuned model on its own test samples."""
    found: dict[str, float] = {}
    heads = {task: _require_head(base, suite, task) for task in tests}
    for task, head in heads.items():
        head.check_labels(tests[task].labels, f"test samples of {task!r}")
    for task, test in tests.items():
        checkpoint = base.backbone.open(suite.checkpoint(task), base.checkpoint)
        model = base.backbone.build(checkpoint, base.checkpoint, base.dtype)
        found[task] = accuracy(base.backbone, model, heads[task], test)
        progress("scoring individual models", len(found), len(tests))
    return found


def evaluate_run(
    run: MergeRun,
    tests: Mapping[str, ScoredTask],
    *,
    label: str | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Scores a run after every step it has taken; seeds are left out unless the preset scores them.

    Raises ConfigError for a run without steps or with tasks that have nothing to score, CheckpointError for
    labels that a task's head does not have.
    """
    method, state = run.method, run.state
    reports = [step.report for step in state.steps]
    used = {sample for report in reports for sample in report.get("seeds", {}).get("ids", ())}
    scored = _without_seeds(run, used, tests)
    matrix = accuracy_matrix(method, state, scored, progress)
    model = None if method.needs_task else method.model(state)
    heads = {step.task: step.head for step in state.steps if step.head is not None}
    gates = None if model is None else gate_activations(run.backbone, model, heads, scored)
    final, cost = final_metrics(method, state, scored, used, model=model)
    preset, name = str(run.header["preset"]), str(run.header["method"])
    return Evaluation(
        label=label or (name if preset == "default" else f"{name} ({preset})"),
        method=name,
        preset=preset,
        one_model=not method.needs_task,
        tasks=run.tasks,
        settings=run.header["settings"],
        matrix=matrix,
        metrics={
            "acc": average_accuracy(matrix),
            "bwt": backward_transfer(matrix),
            "mixed_acc": mixed_accuracy(method, state, scored, model=model),
            "h_score": _h_score(method, state, scored, matrix),
            "router_acc": gates.router_accuracy if gates else None,
            "routed_acc": gates.routed_accuracy if gates else None,
            **final,
        },
        samples_per_task=max(len(test.labels) for test in scored.values()),
        step_seconds=[run.info(task)["seconds"] for task in run.tasks],
        bytes=run.size_bytes(),
        cost=cost | _adaptation_seconds(reports),
        seed_samples=_seed_samples(reports, tests, scored),
        energy=_energy(run.tasks, reports),
        losses=[list(report["losses"]) for report in reports]
        if all("losses" in r for r in reports)
        else None,
        gates=gates._asdict() if gates else None,
    )


def relative_metrics(matrix: Matrix, individual: Sequence[float]) -> dict[str, float | None]:
    """FWT and normalised ACC, which need the accuracy of every task's own model, in the matrix's order."""
    return {
        "fwt": forward_transfer(matrix, individual),
        "normalised_acc": normalised_accuracy(matrix, individual),
    }


def _h_score(
    method: Method[Any], state: State, tests: Mapping[str, ScoredTask], matrix: Matrix
) -> float | None:
    """Of the model as it was after the first half of the tasks, which are the merged ones."""
    half = (len(matrix) + 1) // 2
    held_out = held_out_accuracy(method, state, tests, half)
    return None if held_out is None else h_score(average_accuracy(matrix[:half]), held_out)


def _without_seeds(
    run: MergeRun, used: Collection[str], tests: Mapping[str, ScoredTask]
) -> dict[str, ScoredTask]:
    if not run.tasks:
        raise ConfigError(f"{run.path}: nothing merged yet; add a checkpoint first")
    missing = [task for task in run.tasks if task not in tests]
    if missing:
        raise ConfigError(
            f"{run.path}: no test samples for {', '.join(missing)}; the suite has {', '.join(tests)}; "
            "name tasks as the suite does"
        )
    if run.method.scored_seeds:
        return {task: tests[task] for task in run.tasks}
    scored = {task: tests[task].without(used) for task in run.tasks}
    empty = [task for task, test in scored.items() if not len(test.labels)]
    if empty:
        raise ConfigError(
            f"{run.path}: every test sample of {', '.join(map(repr, empty))} was a seed; nothing to score"
        )
    return scored


def _seed_samples(
    reports: Sequence[Mapping[str, Any]], tests: Mapping[str, ScoredTask], scored: Mapping[str, ScoredTask]
) -> dict[str, Any] | None:
    seeds = [report["seeds"] for report in reports if "seeds" in report]
    if not seeds:
        return None
    return {
        "selection": seeds[0]["selection"],
        "used": [s["used"] for s in seeds],
        "excluded_from_score": sum(len(tests[task].labels) - len(scored[task].labels) for task in scored),
    }


def _adaptation_seconds(reports: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    if not all("timing" in report for report in reports):
        return {}
    return {"adaptation_seconds": sum(report["timing"]["adaptation"] for report in reports)}


def _energy(tasks: Sequence[str], reports: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]] | None:
    if not all("energy" in report for report in reports):
        return None
    parts = ("kept", "projection", "rank", "not_merged")
    return [
        {"task": task, **{part: report["energy"][part] for part in parts}}
        for task, report in zip(tasks, reports, strict=True)
    ]


def _require_head(base: Base, suite: Suite, task: str) -> Head:
    head = task_head(suite, task, base.backbone, base.checkpoint)
    if head is None:
        raise ConfigError(f"{suite.checkpoint(task)}: the suite's checkpoint of {task!r} has no class head")
    return head
