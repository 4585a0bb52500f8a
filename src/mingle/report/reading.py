"""What a results file says: which rows are merges, which are bounds, and what their cells hold.

The shape of results stands in ``mingle.benchmark.results``. ``matrix[t][i]`` (i ≤ t, counted from 0) is the
accuracy on task i of the model after step t.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mingle.benchmark import BOUNDS, RESULTS_SCHEMA
from mingle.errors import ConfigError

Results = Mapping[str, Any]
Row = Mapping[str, Any]
Cell = Mapping[str, Any]

CORRUPTED = "corrupted"
"""The mean over all corruptions, as a metric of a pivoted row."""

_REQUIRED = ("title", "columns", "pivot", "curves", "suite", "orders", "bounds", "rows")
_ROW = ("label", "method", "preset", "point", "corruption", "one_model", "cells", "mean", "std")
_CELL = ("seed", "tasks", "status")
_DONE = ("matrix", "metrics", "cost")


def readable(results: Results) -> Results:
    """Results that the report can show: complete, and with the rows of a pivot joined.

    Raises ConfigError for results of another schema, or without what every report needs.
    """
    if results.get("schema") != RESULTS_SCHEMA:
        raise ConfigError(
            f"results: expected schema {RESULTS_SCHEMA}, found {results.get('schema')!r}; "
            "make the report with the version of mingle that wrote the results"
        )
    missing = [key for key in _REQUIRED if key not in results]
    for i, row in enumerate(results.get("rows", ())):
        missing += [f"rows[{i}].{key}" for key in _ROW if key not in row]
        for j, cell in enumerate(row.get("cells", ())):
            keys = (*_CELL, *(_DONE if cell.get("status") == "done" else ()))
            missing += [f"rows[{i}].cells[{j}].{key}" for key in keys if key not in cell]
    if missing:
        raise ConfigError(f"results: {', '.join(missing)} missing; the file is not complete")
    return _pivoted(results) if results["pivot"] else results


def is_bound(row: Row) -> bool:
    """True for what merges are measured against: the base alone and the individual models."""
    return row["method"] in {bound.method for bound in BOUNDS}


def bounds(results: Results) -> list[Row]:
    """The rows that merges are measured against."""
    return [row for row in results["rows"] if is_bound(row)]


def merges(results: Results) -> list[Row]:
    """All other rows."""
    return [row for row in results["rows"] if not is_bound(row)]


def competes(row: Row) -> bool:
    """True for merges that may be called best: one model, not told the task, not trained on labels."""
    return not is_bound(row) and bool(row["one_model"]) and not row.get("needs_labels", False)


def main_metric(results: Results) -> str:
    """The metric that rows are ranked by."""
    return CORRUPTED if CORRUPTED in results["columns"] else "acc"


def ranking(results: Results) -> list[Row]:
    """The merges that compete and have a score, best first."""
    key = main_metric(results)
    scored = [row for row in results["rows"] if competes(row) and metric(row, key) is not None]
    return sorted(scored, key=lambda row: metric(row, key) or 0.0, reverse=True)


def done(row: Row) -> list[Cell]:
    """The cells of a row that have numbers, one per order."""
    return [cell for cell in row["cells"] if cell["status"] == "done"]


def failed(row: Row) -> list[Cell]:
    """The cells of a row that have a reason instead."""
    return [cell for cell in row["cells"] if cell["status"] != "done"]


def part(row: Row, name: str) -> Any:  # noqa: ANN401 – any JSON value
    """An optional part, such as ``energy``, of the first order of a row that has numbers; None without."""
    cells = done(row)
    return cells[0].get(name) if cells else None


def with_part(rows: Iterable[Row], name: str) -> list[Row]:
    """The rows that carry an optional part."""
    return [row for row in rows if part(row, name)]


def metric(row: Row, name: str) -> float | None:
    """Mean of a metric over the orders of a row; None where it does not apply."""
    value = row["mean"].get(name)
    return None if value is None else float(value)


def deviation(row: Row, name: str) -> float | None:
    """Sample standard deviation of a metric over the orders of a row; None for a single order."""
    value = row["std"].get(name)
    return None if value is None else float(value)


def accuracies(results: Results, bound: str, tasks: Sequence[str]) -> list[float] | None:
    """Accuracy of the ``base`` or of the ``individual`` models on tasks; None where they have no score."""
    found = results["bounds"][bound]
    return None if found is None else [float(found[task]) for task in tasks]


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean."""
    return statistics.fmean(values)


def mean_so_far(values: Sequence[float]) -> list[float]:
    """The mean of the first t values, for every t."""
    return [mean(values[:t]) for t in range(1, len(values) + 1)]


def spread_of(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation; None where there are too few values."""
    return (mean(values) if values else None, statistics.stdev(values) if len(values) > 1 else None)


def _pivoted(results: Results) -> Results:
    """One row per method, its metrics are the values that the pivot varies; details are of clean rows."""
    key, score = results["pivot"], results["columns"][0]
    rows = [row for row in results["rows"] if key in row["point"]]
    labels = list(dict.fromkeys(row["point"]["method"] for row in rows))
    values = list(dict.fromkeys(row["point"][key] for row in rows))
    extra = [CORRUPTED] if any(row["corruption"] for row in rows) else []
    joined = [
        _joined(label, {row["point"][key]: row for row in rows if row["point"]["method"] == label}, score)
        for label in labels
    ]
    return {**results, "columns": [*values, *extra], "rows": joined}


def _joined(label: str, parts: Mapping[str, Row], score: str) -> Row:
    clean = next((row for row in parts.values() if not row["corruption"]), next(iter(parts.values())))
    corrupted = [value for value, row in parts.items() if row["corruption"]]
    found: dict[int, dict[str, Any]] = {}
    for value, row in parts.items():
        for cell in done(row):
            merged = found.setdefault(cell["seed"], {"metrics": {}})
            extra = cell if row is clean else {name: cell[name] for name in _CELL}
            metrics = {**(cell["metrics"] if row is clean else {}), value: cell["metrics"][score]}
            merged |= {**extra, "metrics": merged["metrics"] | metrics}
    for cell in found.values():
        if corrupted and all(value in cell["metrics"] for value in corrupted):
            cell["metrics"][CORRUPTED] = mean(cell["metrics"][value] for value in corrupted)
    overall = spread_of([c["metrics"][CORRUPTED] for c in found.values() if CORRUPTED in c["metrics"]])
    reasons = [
        {**cell, "reason": f"{value.replace('_', ' ')}: {cell['reason']}"}
        for value, row in parts.items()
        for cell in failed(row)
    ]
    either = [
        {**clean[side], **{value: row[side].get(score) for value, row in parts.items()}, CORRUPTED: whole}
        for side, whole in zip(("mean", "std"), overall, strict=True)
    ]
    return {
        **clean,
        "label": label,
        "cells": [*found.values(), *reasons],
        "mean": either[0],
        "std": either[1],
    }
