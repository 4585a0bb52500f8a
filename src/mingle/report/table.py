"""The table, whatever it is written in: its rows, and everything that has to be said with them."""

from typing import Any, NamedTuple

from mingle.report import formats
from mingle.report.columns import Column, columns_of, with_spread
from mingle.report.reading import (
    Results,
    Row,
    bounds,
    competes,
    deviation,
    done,
    failed,
    is_bound,
    merges,
    metric,
)


class Cell(NamedTuple):
    """A mean and a standard deviation, the way they are written, and whether no merge does better."""

    number: str
    spread: str = ""
    mean: float | None = None
    std: float | None = None
    best: bool = False

    @property
    def text(self) -> str:
        """``47.0 ± 1.2``, or the number alone."""
        return with_spread(self.number, self.spread)


class Line(NamedTuple):
    """A row of the table; ``fewer``: the number of its orders where others have more, else empty."""

    label: str
    bound: bool
    orders: int
    fewer: str
    cells: list[Cell]


_SHOWN = (
    "sites",
    "rank",
    "lr",
    "steps",
    "projection",
    "gate_reduction",
    "gate_bias",
    "acts_on",
    "router_reads",
    "router_features",
    "router_ridge",
    "router_temperature",
    "seeds",
    "scale",
)
"""Settings that are named under the table; the page has all of them."""

_OF_GATES = {
    "adapted": {"lr", "steps", "gate_bias", "acts_on"},
    "analytic": {"router_reads", "router_features", "router_ridge", "router_temperature"},
    "static": set[str](),
}
"""Those of them that say something about one kind of gates only."""

_CONDITIONS = (
    ("gate_reduction", "batch", "Gates averaged over each batch, so a score depends on what shares a batch"),
    ("seeds", "label", "Seed samples balanced by their true labels"),
    ("seed_pool", "scored", "Seed samples may be among the scored ones"),
)

_APART = "so not compared with the others"


def lines(results: Results) -> list[Line]:
    """The rows of the table: base and individual models first, then the others, in the file's order."""
    columns, orders = columns_of(results), len(results["orders"])
    tops = {column.key: _top(column, results["rows"]) for column in columns}
    found = []
    for row in [*bounds(results), *merges(results)]:
        count = len({cell["seed"] for cell in done(row)} - {cell["seed"] for cell in failed(row)})
        cells = [_cell(column, row, tops[column.key]) for column in columns]
        if not done(row):
            cells = [Cell("failed"), *(Cell(formats.DASH) for _ in columns[1:])]
        fewer = f"n = {count}" if 0 < count < orders and not is_bound(row) else ""
        found.append(Line(row["label"], is_bound(row), count, fewer, cells))
    return found


def title(results: Results) -> str:
    """Title, suite, number of tasks, and how much of each test set was scored."""
    tasks = formats.counted(len(results["orders"][0]["tasks"]), "task").lower()
    what = f"{results['title']} · {results['suite']['name']}, {tasks}"
    samples = results.get("samples_per_task")
    return f"{what}, up to {samples} test samples each" if samples else what


def notes(results: Results) -> list[str]:
    """What has to be known before rows are compared: orders, protocol, failures."""
    return [_orders(results), *_conditions(results), *_failures(results)]


def values_used(results: Results) -> list[str]:
    """Preset and main settings of the merges, each preset once, without what the table varies."""
    found: dict[tuple[str, str], str] = {}
    for row in merges(results):
        settings = row.get("settings") or {}
        unsaid = {*(row.get("options") or {}), *row["point"]}
        if settings.get("gates") in _OF_GATES:
            unsaid |= set().union(*_OF_GATES.values()) - _OF_GATES[settings["gates"]]
        said = [
            f"{name} {_number(settings[name])}" for name in _SHOWN if name in settings and name not in unsaid
        ]
        if said and (row["method"], row["preset"]) not in found:
            found[row["method"], row["preset"]] = (
                f"{row['method']}, preset {row['preset']}: {', '.join(said)}."
            )
    return list(found.values())


def _number(value: Any) -> str:  # noqa: ANN401 – any JSON value
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _orders(results: Results) -> str:
    seeds = [order["seed"] for order in results["orders"]]
    if len(seeds) == 1:
        return f"One order of the tasks (seed {seeds[0]})."
    text = (
        f"Mean ± sample standard deviation over {len(seeds)} orders of the tasks "
        f"(seeds {formats.span(seeds)}); n: rows with fewer."
    )
    if any(len(done(row)) == 1 for row in bounds(results)):
        text += " Accuracies of the base and of the individual models do not depend on the order."
    return text


def _conditions(results: Results) -> list[str]:
    """Protocols that differ from the default, with the rows that follow them."""
    rows = merges(results)
    found = [
        (text, [row for row in rows if (row.get("settings") or {}).get(key) == value])
        for key, value, text in _CONDITIONS
    ]
    found += [
        (f"Told the task of every sample, {_APART}", [row for row in rows if not row["one_model"]]),
        (f"Trained on labels, {_APART}", [row for row in rows if row.get("needs_labels")]),
    ]
    return [
        f"{text}: {'all' if len(said) == len(rows) > 1 else ', '.join(row['label'] for row in said)}."
        for text, said in found
        if said
    ]


def _failures(results: Results) -> list[str]:
    """Every failed cell with its reason; the orders of a row that share a reason are named together."""
    found: dict[tuple[str, str], list[int]] = {}
    for row in results["rows"]:
        for cell in failed(row):
            found.setdefault((row["label"], str(cell.get("reason"))), []).append(cell["seed"])
    return [
        f"Failed: {label}, order{'s' if len(seeds) > 1 else ''} {formats.span(seeds)}: {reason.rstrip('.')}."
        for (label, reason), seeds in found.items()
    ]


def _top(column: Column, rows: list[Row]) -> str | None:
    """The best mean of the merges as it is written; None with nothing to compare."""
    values = [value for row in rows if competes(row) and (value := metric(row, column.key)) is not None]
    if len(values) < 2 or not column.better:
        return None
    return column.show(max(values) if column.better > 0 else min(values))


def _cell(column: Column, row: Row, top: str | None) -> Cell:
    value, number = metric(row, column.key), column.number(row)
    best = value is not None and number == top and competes(row)
    return Cell(number, column.plus_minus(row), value, deviation(row, column.key), best)
