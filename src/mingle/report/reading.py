"""What a results file says: which rows are merges, which are bounds, and what follows from a matrix.

``matrix[t][i]`` (i ≤ t, counted from 0) is the accuracy on task i of the model after step t.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mingle.benchmark import RESULTS_SCHEMA
from mingle.errors import ConfigError

Results = Mapping[str, Any]
Row = Mapping[str, Any]

_BASE = "pretrained"
_REQUIRED = ("suite", "order", "individual", "rows")
_ROW = ("label", "method", "one_model", "matrix", "metrics")


def check(results: Results) -> None:
    """Raises ConfigError for results of another schema, or without what every report needs."""
    if results.get("schema") != RESULTS_SCHEMA:
        raise ConfigError(
            f"results: expected schema {RESULTS_SCHEMA}, found {results.get('schema')!r}; "
            "make the report with the version of mingle that wrote the results"
        )
    missing = [key for key in _REQUIRED if key not in results]
    missing += [
        f"rows[{i}].{key}" for i, row in enumerate(results.get("rows", ())) for key in _ROW if key not in row
    ]
    if missing:
        raise ConfigError(f"results: {', '.join(missing)} missing; the file is not complete")


def is_bound(row: Row) -> bool:
    """True for what merges are measured against: the base alone, and whatever is not one model."""
    return row["method"] == _BASE or not row["one_model"]


def bounds(results: Results) -> list[Row]:
    """The rows that merges are measured against."""
    return [row for row in results["rows"] if is_bound(row)]


def merges(results: Results) -> list[Row]:
    """The rows of merged models."""
    return [row for row in results["rows"] if not is_bound(row)]


def with_part(results: Results, part: str) -> list[Row]:
    """The rows that carry an optional part, such as ``energy``."""
    return [row for row in results["rows"] if row.get(part)]


def base_accuracies(results: Results) -> list[float] | None:
    """Accuracy of the base on every task, from its row; None without one."""
    return next((list(row["matrix"][-1]) for row in results["rows"] if row["method"] == _BASE), None)


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean."""
    found = list(values)
    return sum(found) / len(found)


def mean_so_far(values: Sequence[float]) -> list[float]:
    """The mean of the first t values, for every t."""
    return [mean(values[:t]) for t in range(1, len(values) + 1)]


def metric(row: Row, name: str) -> float | None:
    """A metric of a row; None where it does not apply."""
    value = row["metrics"].get(name)
    return None if value is None else float(value)
