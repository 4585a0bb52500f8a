"""From the outcomes of cells to the results of a table: metrics against the individual models, mean and std.

Shape of the results (schema 2)::

    table, title, columns, pivot, curves
    suite        {name, backbone, tasks, fingerprints: {base, <task>…}}
    orders       [{seed, tasks}]
    bounds       {base: {task: accuracy}, individual: {task: accuracy}}
    rows         [{label, method, preset, options, point, corruption, bound, one_model,
                   needs_labels, settings,
                   cells: [{seed, tasks, status, reason | matrix, metrics, cost, losses, gates, energy, …}],
                   mean: {…}, std: {…}}]
    examples     [{task, image, truth}]; a cell's examples are the classes it says for them, in this order
    samples_per_task, versions, machine, created, command
"""

import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from mingle.benchmark.examples import example_images
from mingle.benchmark.executors import Outcome
from mingle.benchmark.plan import BOUNDS, Cell, Contender, Table
from mingle.benchmark.results_file import RESULTS_SCHEMA
from mingle.evaluation import relative_metrics
from mingle.provenance import machine, versions
from mingle.suites import Suite

DETAILS = ("gates", "losses", "energy", "seed_samples", "examples", "settings")
"""Large parts that only the first finished cell of a row keeps; every cell's own file has them."""

Plan = Sequence[tuple[Contender, Sequence[Cell]]]


def assemble(
    table: Table,
    suite: Suite,
    plan: Plan,
    outcomes: Mapping[str, Outcome],
    fingerprints: Mapping[str, str],
    command: str,
) -> dict[str, Any]:
    """The results of a table as plain values; a row without a finished cell has no mean."""
    bounds = {
        name: _final(cells[0], outcomes[cells[0].key])
        for name, (_, cells) in zip(("base", "individual"), plan, strict=False)
    }
    rows = [_row(contender, cells, outcomes, bounds["individual"]) for contender, cells in plan]
    orders = {cell.seed: cell.tasks for _, cells in plan for cell in cells}
    done = next((outcome for outcome in outcomes.values() if outcome["status"] == "done"), {})
    return {
        "schema": RESULTS_SCHEMA,
        "title": table.title,
        "columns": list(table.columns),
        "pivot": table.pivot,
        "curves": list(table.curves),
        "suite": {
            "name": suite.name,
            "backbone": suite.backbone,
            "tasks": list(suite.tasks),
            "fingerprints": dict(fingerprints),
        },
        "orders": [{"seed": seed, "tasks": list(tasks)} for seed, tasks in orders.items()],
        "samples_per_task": done.get("samples_per_task"),
        "bounds": bounds,
        "rows": rows,
        "versions": versions(),
        "machine": machine(),
        "examples": example_images(suite, table.tasks(suite.tasks)),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
    }


def _final(cell: Cell, outcome: Outcome) -> dict[str, float] | None:
    """Accuracy of every task after the last step."""
    if outcome["status"] != "done":
        return None
    return dict(zip(cell.tasks, outcome["matrix"][-1], strict=True))


def _row(
    contender: Contender,
    cells: Sequence[Cell],
    outcomes: Mapping[str, Outcome],
    individual: Mapping[str, float] | None,
) -> dict[str, Any]:
    # Under corruption the models of the tasks are no measure: theirs are clean images.
    own = individual if contender.corruption is None else None
    found = [_cell(cell, outcomes[cell.key], own) for cell in cells]
    done = [cell for cell in found if cell["status"] == "done"]
    first = done[0] if done else {}
    for cell in done[1:]:
        for part in DETAILS:
            cell.pop(part, None)
    return {
        "label": contender.label,
        "method": contender.method,
        "preset": contender.preset,
        "options": dict(contender.options),
        "point": dict(contender.point),
        "corruption": contender.corruption and vars(contender.corruption),
        "variation": contender.variation and vars(contender.variation),
        "bound": contender in BOUNDS,
        "one_model": first.get("one_model", True),
        "needs_labels": contender.build(len(cells[0].tasks)).needs_labels,
        "settings": first.get("settings"),
        "cells": found,
        **_spread([{**cell["metrics"], **cell["cost"]} for cell in done]),
    }


def _cell(cell: Cell, outcome: Outcome, individual: Mapping[str, float] | None) -> dict[str, Any]:
    value = {"seed": cell.seed, "tasks": list(cell.tasks), "key": cell.key, **outcome}
    if outcome["status"] == "done":
        own = None if individual is None else [individual[task] for task in cell.tasks]
        relative = {"fwt": None, "normalised_acc": None}
        value["metrics"] = outcome["metrics"] | (
            relative if own is None else relative_metrics(outcome["matrix"], own)
        )
        value["cost"] = _cost(outcome)
    return value


def _cost(outcome: Outcome) -> dict[str, float | None]:
    cost: dict[str, float | None] = {**outcome["cost"]}
    speed, base = cost.get("images_per_second"), cost.get("base_images_per_second")
    return cost | {
        "seconds": sum(outcome["step_seconds"]),
        "megabytes": outcome["bytes"] / 1e6,
        "relative_speed": speed / base if speed and base else None,
    }


def _spread(metrics: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, float | None]]:
    """Mean and sample standard deviation over orders; a metric that is None anywhere has neither."""
    values = {name: [m[name] for m in metrics] for name in (metrics[0] if metrics else ())}
    whole = {name: [v for v in found if v is not None] for name, found in values.items()}
    kept = {name: found for name, found in whole.items() if len(found) == len(metrics)}
    return {
        "mean": {name: statistics.fmean(kept[name]) if name in kept else None for name in values},
        "std": {
            name: statistics.stdev(kept[name]) if name in kept and len(kept[name]) > 1 else None
            for name in values
        },
    }
