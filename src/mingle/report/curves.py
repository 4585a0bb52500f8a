"""Plots of scores against something else: what a sweep varies (figure 4), and what a method costs."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mingle.report import formats
from mingle.report.canvas import SERIES, axes, draw, paint, series_colours, short, spread
from mingle.report.columns import COLUMNS
from mingle.report.reading import Results, Row, deviation, merges, metric

DECADE = 10
"""Largest over smallest value from which on an axis is logarithmic."""

COSTS = ("seconds", "megabytes", "parameters", "gate_parameters", "images_per_second")
"""Costs that ACC is drawn against where they are columns of the table."""


def sensitivity(results: Results, key: str) -> str:
    """ACC and BWT against the values of an option, a line per setting of whatever else the rows vary.

    Error bars reach one standard deviation over orders to both sides.
    """
    groups = curve_groups(results, key)
    values = sorted({row["point"][key] for rows in groups.values() for row in rows}, key=_sorting)
    places, scale = axis_places(values)
    at = dict(zip(map(repr, values), places, strict=True))

    def content(figure: Figure) -> None:
        for top, height, name in ((20, 130, "acc"), (178, 96, "bwt")):
            area = axes(figure, 40, top, 272, height)
            for number, rows in enumerate(groups.values()):
                _error_line(area, rows, [at[repr(row["point"][key])] for row in rows], name, number)
            area.set_title(COLUMNS[name].title, loc="left", fontsize=11, color=paint("muted"))
            area.set_xticks(places, [_written(v) for v in values] if name == "bwt" else [])
            area.grid(axis="y")
            area.locator_params(axis="y", nbins=5)
            area.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.3g}".replace("-", "−"))
            area.tick_params(length=0, labelsize=10)
            area.spines["left"].set_visible(False)
            area.margins(x=0.06)
        area.set_xlabel(f"{key.replace('_', ' ')}{f' ({scale})' if scale else ''}")

    return draw(320, 318, f"ACC and BWT against {key}", content)


def curve_groups(results: Results, key: str) -> dict[str, list[Row]]:
    """The rows that vary ``key``, by the rest of their point: one curve each, by rising value."""
    groups: dict[str, list[Row]] = {}
    for row in merges(results):
        if key in row["point"] and metric(row, "acc") is not None:
            rest = {name: value for name, value in row["point"].items() if name != key}
            name = ", ".join(f"{other.replace('_', ' ')} {value}" for other, value in rest.items())
            groups.setdefault(name, []).append(row)
    return {name: sorted(rows, key=lambda row: _sorting(row["point"][key])) for name, rows in groups.items()}


def axis_places(values: Sequence[Any]) -> tuple[list[float], str]:
    """Where sorted values stand on an axis, and the name of its scale.

    Numbers stand where they are; at their logarithm when they span a decade, with zero one place before the
    smallest; at that of their distance from one when this spans a decade below one, as β does; anything else
    one after the other.
    """
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return [float(i) for i in range(len(values))], ""
    positive = [value for value in values if value > 0]
    if values[0] > 0 and values[-1] < 1 and (1 - values[0]) / (1 - values[-1]) >= DECADE:
        return [-math.log10(1 - value) for value in values], "log of the distance from 1"
    if values[0] >= 0 and len(positive) > 1 and positive[-1] / positive[0] >= DECADE:
        logs = [math.log10(value) for value in positive]
        step = min(high - low for low, high in pairwise(logs))
        zero = [logs[0] - max(step, 0.3)] if values[0] == 0 else []
        return zero + logs, "log scale, zero apart" if zero else "log scale"
    return [float(value) for value in values], ""


def cost(results: Results, key: str) -> str:
    """ACC against a cost: a point per merge with a bar of one standard deviation, a name at the coloured."""
    colours, column = series_colours(results), COLUMNS[key]
    found = [
        (row, cost_of, acc)
        for row in merges(results)
        if (cost_of := metric(row, key)) is not None and (acc := metric(row, "acc")) is not None
    ]
    amounts = sorted(cost_of for _, cost_of, _ in found)
    wide = bool(amounts) and amounts[0] > 0 and amounts[-1] / amounts[0] >= DECADE

    def content(figure: Figure) -> None:
        area = axes(figure, 40, 12, 280, 250)
        if wide:
            area.set_xscale("log")
        for row, x, y in found:
            colour = paint(colours[row["label"]])
            area.errorbar(x, y, deviation(row, "acc"), fmt="o", ms=6, color=colour, elinewidth=1.2)
        area.set_xlabel(f"{column.title}{' (log scale)' if wide else ''}")
        area.xaxis.set_major_formatter(lambda x, _: column.show(x))
        area.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f} %")
        area.minorticks_off()
        area.grid()
        area.tick_params(length=0, labelsize=10)
        named = [(row, x, y) for row, x, y in found if colours[row["label"]] != "other"]
        _name_points(area, named, colours)

    return draw(500, 308, f"ACC against {column.title}", content)


def _name_points(area: Axes, named: Sequence[tuple[Row, float, float]], colours: dict[str, str]) -> None:
    """Names at the right, none on top of another, each with a thin line to its point."""
    low, high = area.get_ylim()
    left, right = area.get_xlim()
    places = spread([y for _, _, y in named], gap=17 * (high - low) / 250)
    for (row, x, y), place in zip(named, places, strict=True):
        colour = paint(colours[row["label"]])
        area.annotate(
            f"{short(row['label'], 22)}  {formats.percent(y)}",
            (x, y),
            (1.04, (place - low) / (high - low)),
            textcoords="axes fraction",
            va="center_baseline",
            color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "alpha": 0.6, "shrinkB": 4},
        )
    area.set_xlim(left, right)
    area.set_ylim(low, high)


def _error_line(area: Axes, rows: Sequence[Row], places: Sequence[float], name: str, number: int) -> None:
    found = [(x, value, deviation(row, name)) for x, row in zip(places, rows, strict=True)
             if (value := metric(row, name)) is not None]  # fmt: skip
    if not found:
        return
    xs, ys, errors = zip(*found, strict=True)
    bars = None if None in errors else errors
    colour = paint(SERIES[number % len(SERIES)])
    area.errorbar(
        xs, ys, bars, color=colour, marker="os^D"[number % 4], ms=5, lw=1.8, elinewidth=1.2, capsize=3
    )


def _sorting(value: Any) -> tuple[bool, float, str]:  # noqa: ANN401 – any JSON value
    """Numbers by size, then anything else by its name."""
    number = isinstance(value, int | float)
    return not number, float(value) if number else 0.0, str(value)


def _written(value: Any) -> str:  # noqa: ANN401 – any JSON value
    return f"{value:g}" if isinstance(value, float) else short(str(value))
