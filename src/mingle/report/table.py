"""One table of all methods: its columns, and the table as Markdown and for the terminal."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from mingle.report import formats
from mingle.report.reading import Results, Row, bounds, check, is_bound, merges, metric


@dataclass(frozen=True)
class Column:
    """A column of numbers. ``best``: whether the highest value of the merges is marked."""

    key: str
    title: str
    value: Callable[[Row], float | None]
    show: Callable[[float | None], str]
    best: bool = False


class Cell(NamedTuple):
    """A number, the way it is written, and whether no merge does better."""

    text: str
    value: float | None
    best: bool


class Line(NamedTuple):
    """A row of the table."""

    label: str
    bound: bool
    cells: list[Cell]


def _metric(key: str, title: str, show: Callable[[float | None], str]) -> Column:
    return Column(key, title, lambda row: metric(row, key), show, best=True)


COLUMNS = (
    _metric("acc", "ACC %", formats.percent),
    _metric("bwt", "BWT", formats.points),
    _metric("normalised_acc", "normalised ACC %", formats.percent),
    _metric("mixed_acc", "mixed ACC %", formats.percent),
    _metric("fwt", "FWT", formats.points),
    Column("seconds", "seconds", lambda row: row.get("seconds"), formats.seconds),
    Column("bytes", "MB on disk", lambda row: row.get("bytes"), formats.megabytes),
)

DEFINITIONS = (
    ("a[t][i]", "accuracy on task i of the model as it is after step t; T tasks."),
    ("ACC", "mean_i a[T][i]: mean accuracy of the final model over all tasks."),
    ("BWT", "1/(T−1) Σ_{i<T} (a[T][i] − a[i][i]), in points; negative means forgetting."),
    ("normalised ACC", "mean_i a[T][i] / individual[i]: share of each task's own fine-tuned model."),
    ("mixed ACC", "ACC when the samples of all tasks are interleaved in the same batches."),
    (
        "FWT",
        "1/(T−1) Σ_{t≥2} (a[t][t] − individual[t]), in points, as in the paper's appendix: "
        "a task right after it was merged, against its own model.",
    ),
    ("seconds", "time of all merging steps together."),
    ("MB on disk", "10^6 bytes that the method keeps at the end."),
)

_SHOWN = ("rank", "lr", "steps", "projection", "gate_reduction", "gate_bias", "acts_on", "seeds", "scale")

_NOTES = (
    (
        "gate_reduction",
        "batch",
        "gates are averaged over each batch, so a score depends on what shares a batch",
    ),
    ("seeds", "label", "seed samples were balanced by their true labels"),
    ("seed_pool", "scored", "seed samples may be among the scored ones"),
)


def lines(results: Results) -> list[Line]:
    """The rows of the table: base and individual models first, then the merges, in the file's order."""
    merged = merges(results)
    tops = {column.key: _top(column, merged) for column in COLUMNS if column.best}
    return [
        Line(row["label"], is_bound(row), [_cell(column, row, tops.get(column.key)) for column in COLUMNS])
        for row in [*bounds(results), *merged]
    ]


def notes(results: Results) -> list[str]:
    """What has to be known about single rows before they are compared."""
    found = []
    for row in results["rows"]:
        settings = row.get("settings") or {}
        said = [text for key, value, text in _NOTES if settings.get(key) == value]
        if said:
            found.append(f"{row['label']}: {'; '.join(said)}.")
    return found


def title(results: Results) -> str:
    """Suite, number of tasks, and how much of each test set was scored."""
    scored, whole = results.get("samples_per_task"), results.get("test_samples")
    what = f"{results['suite']}: {formats.counted(len(results['order']), 'task')}"
    if not scored:
        return what
    share = f"a fixed {scored} of up to {whole}" if whole and scored < whole else f"up to {scored}"
    return f"{what}, {share} test samples each"


def values_used(results: Results) -> list[str]:
    """Preset and main settings of every merge that has any."""
    found = []
    for row in merges(results):
        settings = row.get("settings") or {}
        said = [f"{name} {settings[name]}" for name in _SHOWN if name in settings]
        if said:
            found.append(f"{row['label']}: preset {row.get('preset')}, {', '.join(said)}")
    return found


def markdown(results: Results) -> str:
    """The table in Markdown, with what its columns mean beneath. Bounds are in italics."""
    check(results)
    head = ["method", *(column.title for column in COLUMNS)]
    body = ["| " + " | ".join(head) + " |", "|:--|" + "--:|" * len(COLUMNS)]
    for line in lines(results):
        label = _plain(line.label)
        cells = [f"**{cell.text}**" if cell.best else cell.text for cell in line.cells]
        body.append("| " + " | ".join([f"*{label}*" if line.bound else label, *cells]) + " |")
    remarks = ["*Italic*: not merged models but what they are measured against. **Bold**: best merge."]
    remarks += [_plain(note) for note in [f"{title(results)}.", *notes(results), *values_used(results)]]
    meaning = [f"- {name}: {text}" for name, text in DEFINITIONS]
    return "\n".join([*body, "", *(f"{remark}  " for remark in remarks), "", *meaning])


def terminal(results: Results) -> Table:
    """The table for a terminal; base and individual models are set apart from the merges."""
    check(results)
    shown = [column for column in COLUMNS if column.key != "fwt"]  # eighty characters are not enough for all
    meaning = (f"{name}: {text}" for name, text in DEFINITIONS if name != "FWT")
    remarks = [*notes(results), *values_used(results), *meaning]
    table = Table(
        title=Text(title(results)),
        caption=Text("\n".join(remarks)),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("method", no_wrap=True, min_width=max(len(row["label"]) for row in results["rows"]))
    for column in shown:
        heading = column.title.replace("normalised", "norm.")
        table.add_column(heading, justify="right", min_width=max(map(len, heading.split())))
    found = lines(results)
    for i, line in enumerate(found):
        style = "dim" if line.bound else ""
        kept = (cell for cell, column in zip(line.cells, COLUMNS, strict=True) if column in shown)
        cells = [Text(cell.text, "bold" if cell.best else style) for cell in kept]
        last_bound = line.bound and i + 1 < len(found) and not found[i + 1].bound
        table.add_row(Text(line.label, style), *cells, end_section=last_bound)
    return table


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*\[\]<>|]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))


def _top(column: Column, rows: list[Row]) -> str | None:
    """The best value of the merges as it is written; None with nothing to compare."""
    values = [value for row in rows if (value := column.value(row)) is not None]
    return column.show(max(values)) if len(values) > 1 else None


def _cell(column: Column, row: Row, top: str | None) -> Cell:
    value = column.value(row)
    text = column.show(value)
    return Cell(text, value, value is not None and text == top and not is_bound(row))
