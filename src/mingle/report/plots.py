"""The plots of a report about accuracy, energy and adaptation; each function returns one SVG element."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mingle.report import formats
from mingle.report.canvas import axes, draw, featured, paint, series_colours, short, spread
from mingle.report.heatmap import cells
from mingle.report.reading import (
    Results,
    Row,
    accuracies,
    done,
    mean,
    mean_so_far,
    merges,
    part,
    spread_of,
    with_part,
)

ENERGY = {
    "kept": "kept in the expert",
    "projection": "dropped by the projection off earlier tasks",
    "rank": "dropped by the rank",
    "not_merged": "in parameters that are not merged",
}
"""Where the energy of a task vector goes, in the order of the bars."""

DASHES = ((), (5, 2), (1.5, 1.5), (7, 2, 1.5, 2), (3, 1), (9, 3))
"""How the line of a row is dashed where lines lie on each other; colour alone does not tell them apart."""

_MARKERS = "osD^vPX*"


def accuracy_over_steps(results: Results, *, compact: bool = False) -> str:
    """Mean accuracy on the tasks so far after every step: a line per merge, base and individual as bounds.

    With several orders the lines are means over orders, and bands reach one standard deviation to both sides.
    ``compact``: for a narrow page, without labels at the lines.
    """
    width, height = (380, 330) if compact else (980, 430)
    right, below = 14 if compact else 240, 92 if len(results["orders"]) == 1 else 44
    tasks = results["orders"][0]["tasks"]
    steps = range(1, len(tasks) + 1)

    def content(figure: Figure) -> None:
        area = axes(figure, 44, 14, width - 44 - right, height - 14 - below)
        ends = [*_bound_lines(area, results), *_merge_lines(area, results)]
        if len(results["orders"]) == 1:
            area.set_xticks(steps, [f"+ {short(t)}" for t in tasks], rotation=40, ha="right")
        else:
            area.set_xticks(steps)
            area.set_xlabel("number of merged tasks")
        area.set_xlim(0.8, len(steps) + 0.2)
        area.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f} %")
        area.grid(axis="y")
        area.tick_params(length=0)
        area.spines["left"].set_visible(False)
        if not compact:
            _label_ends(area, ends, height - 14 - below)

    return draw(width, height, "Mean accuracy on the tasks so far after every step", content)


def accuracy_matrix(results: Results, row: Row) -> str:
    """A method's first order: a row per step, a column per task; beneath them base and own model."""
    cell = next(cell for cell in done(row) if "matrix" in cell)
    tasks = [short(task) for task in cell["tasks"]]
    size = 27 if len(tasks) <= 10 else 22
    width, height = size * len(tasks), size * len(cell["matrix"])
    pairs = (("base", "base"), ("own model", "individual"))
    beneath = [(name, found) for name, key in pairs if (found := accuracies(results, key, cell["tasks"]))]
    floor = accuracy_floor(results)

    def fill(
        area: Axes, lines: Sequence[Sequence[float]], names: Sequence[str], below: Sequence[str]
    ) -> None:
        padded = [[*line, *[None] * (len(tasks) - len(line))] for line in lines]
        strength = [[None if a is None else (a - floor) / (1 - floor) for a in line] for line in padded]
        text = [["" if a is None else f"{100 * a:.0f}" for a in line] for line in padded]
        cells(area, strength, text, names, below)

    def content(figure: Figure) -> None:
        whole = axes(figure, 106, 2, width, height)
        fill(whole, cell["matrix"], [f"+ {task}" for task in tasks], [] if beneath else tasks)
        if beneath:
            under = axes(figure, 106, height + 12, width, size * len(beneath))
            fill(under, [found for _, found in beneath], [name for name, _ in beneath], tasks)

    label = f"Accuracy matrix of {row['label']}"
    return draw(108 + width, 12 + height + size * len(beneath) + 84, label, content)


def accuracy_floor(results: Results) -> float:
    """The accuracy that heat maps leave blank: the lowest of all, rounded down to ten per cent."""
    tasks = results["orders"][0]["tasks"]
    lowest = [
        min(a for line in part(row, "matrix") for a in line) for row in with_part(results["rows"], "matrix")
    ]
    lowest += [min(found) for key in ("base", "individual") if (found := accuracies(results, key, tasks))]
    return min(0.9, int(10 * min(lowest, default=0.0)) / 10)


def energy(row: Row) -> str:
    """Where the energy of each task vector went: a bar per task, in the parts of ``ENERGY``."""
    entries = part(row, "energy")
    height = 26 * len(entries)

    def content(figure: Figure) -> None:
        area = axes(figure, 118, 4, 300, height)
        start = [0.0] * len(entries)
        for share_of in ENERGY:
            shares = [max(0.0, entry[share_of]) for entry in entries]
            area.barh(range(len(entries)), shares, 0.72, start, color=paint(share_of))
            for y, (left, share) in enumerate(zip(start, shares, strict=True)):
                if share >= 0.09:
                    dark = share_of in ("projection", "not_merged")
                    area.text(
                        left + share / 2, y, f"{100 * share:.0f}", ha="center", va="center_baseline",
                        color="#101010" if dark else "#ffffff", fontsize=10,
                    )  # fmt: skip
            start = [a + b for a, b in zip(start, shares, strict=True)]
        area.set_yticks(range(len(entries)), [short(entry["task"]) for entry in entries])
        area.set_ylim(len(entries) - 0.5, -0.5)
        area.set_xlim(0, max(1.0, *start))
        area.set_xticks([0, 0.5, 1], ["0", "50", "100 %"])
        area.tick_params(length=0)
        for side in ("left", "bottom"):
            area.spines[side].set_visible(False)

    return draw(440, height + 28, f"Energy of every task vector with {row['label']}", content)


def loss(results: Results, task: int) -> str:
    """Adaptation loss at one task (from 0) of the first order, a line per method; one scale for all."""
    rows = with_part(featured(results), "losses")
    curves = [part(row, "losses") for row in rows]
    top = max((value for losses in curves for line in losses for value in line), default=1.0)
    name, colours = results["orders"][0]["tasks"][task], series_colours(results)

    def content(figure: Figure) -> None:
        area = axes(figure, 34, 26, 168, 110)
        for number, (row, losses) in enumerate(zip(rows, curves, strict=True)):
            curve = losses[task] if task < len(losses) else []
            colour = paint(colours[row["label"]])
            dash = DASHES[number % len(DASHES)]
            area.plot(range(1, len(curve) + 1), curve, color=colour, lw=1.6, dashes=dash or (None, None))
        area.set_ylim(0, 1.05 * top or 1.0)
        area.set_title(short(name, 26), loc="left", fontsize=11, color=paint("ink"))
        area.locator_params(nbins=4)
        area.grid(axis="y")
        area.tick_params(length=0, labelsize=10)
        area.spines["left"].set_visible(False)

    return draw(206, 160, f"Adaptation loss for {name}", content)


def _bound_lines(area: Axes, results: Results) -> list[tuple[str, float, str]]:
    """Base and individual models: the band that merges move in. Returns label, end and colour."""
    found = {}
    for key in ("base", "individual"):
        by_order = [accuracies(results, key, order["tasks"]) for order in results["orders"]]
        lines = [mean_so_far(line) for line in by_order if line is not None]
        if lines:
            found[key] = [mean(step) for step in zip(*lines, strict=True)]
    steps = range(1, len(results["orders"][0]["tasks"]) + 1)
    if len(found) == 2:
        area.fill_between(steps, found["base"], found["individual"], color=paint("band"), lw=0)
    named = {"individual": ("individual models", "--"), "base": ("base alone", ":")}
    for key, line in found.items():
        area.plot(steps, line, named[key][1], color=paint("muted"), lw=1.4)
    return [(named[key][0], line[-1], "muted") for key, line in found.items()]


def _merge_lines(area: Axes, results: Results) -> list[tuple[str, float, str]]:
    colours, ends, number = series_colours(results), [], 0
    for row in sorted(merges(results), key=lambda row: colours[row["label"]] != "other"):
        orders = [[mean(after) for after in cell["matrix"]] for cell in done(row) if "matrix" in cell]
        if not orders:
            continue
        found = [spread_of(step) for step in zip(*orders, strict=True)]
        line, deviations = [middle or 0.0 for middle, _ in found], [std or 0.0 for _, std in found]
        steps, colour = range(1, len(line) + 1), colours[row["label"]]
        if colour == "other":
            area.plot(steps, line, color=paint(colour), lw=1)
            continue
        low, high = ([a + sign * s for a, s in zip(line, deviations, strict=True)] for sign in (-1, 1))
        if len(orders) > 1:
            area.fill_between(steps, low, high, color=paint(colour), alpha=0.13, lw=0)
        marker = _MARKERS[number % len(_MARKERS)]
        area.plot(steps, line, color=paint(colour), marker=marker, ms=5, lw=2)
        ends.append((row["label"], line[-1], colour))
        number += 1
    return ends


def _label_ends(area: Axes, ends: Sequence[tuple[str, float, str]], height: float) -> None:
    """Names the lines at their right ends, none on top of another."""
    low, high = area.get_ylim()
    places = spread([end for _, end, _ in ends], gap=17 * (high - low) / height)
    right = area.get_xlim()[1]
    for (label, end, colour), place in zip(ends, places, strict=True):
        text = f"{short(label, 24)}  {formats.percent(end)}"
        weight = "normal" if colour == "muted" else "bold"
        area.text(right, place, text, color=paint(colour), va="center_baseline", weight=weight)
