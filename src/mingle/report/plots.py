"""The plots of a report about accuracy, energy and adaptation; each function returns one SVG element."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mingle.report import formats
from mingle.report.canvas import axes, draw, paint, series_colours, short, spread
from mingle.report.heatmap import cells
from mingle.report.reading import Results, Row, base_accuracies, mean, mean_so_far, merges, with_part

ENERGY = {
    "kept": "kept in the expert",
    "projection": "dropped by the projection off earlier tasks",
    "rank": "dropped by the rank",
    "not_merged": "in parameters that are not merged",
}
"""Where the energy of a task vector goes, in the order of the bars."""

DASHES = ((), (5, 2), (1.5, 1.5), (7, 2, 1.5, 2), (3, 1), (9, 3))
"""How the line of a row is dashed where lines lie on each other; colour alone does not tell them apart."""

_MARKERS = "osD^vPX"


def accuracy_over_steps(results: Results, *, compact: bool = False) -> str:
    """Mean accuracy on the tasks so far after every step: a line per merge, base and individual as bounds.

    ``compact``: for a narrow page, without labels at the lines.
    """
    width, height = (380, 330) if compact else (980, 430)
    right = 14 if compact else 190
    steps = range(1, len(results["order"]) + 1)

    def content(figure: Figure) -> None:
        area = axes(figure, 44, 14, width - 44 - right, height - 14 - 92)
        ends = [*_bound_lines(area, results), *_merge_lines(area, results)]
        area.set_xticks(steps, [f"+ {short(t)}" for t in results["order"]], rotation=40, ha="right")
        area.set_xlim(0.8, len(steps) + 0.2)
        area.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f} %")
        area.grid(axis="y")
        area.tick_params(length=0)
        area.spines["left"].set_visible(False)
        if not compact:
            _label_ends(area, ends, height - 106)

    return draw(width, height, "Mean accuracy on the tasks so far after every step", content)


def accuracy_matrix(results: Results, row: Row) -> str:
    """One method's accuracy matrix: a row per step, a column per task; beneath it base and own model."""
    tasks = [short(task) for task in results["order"]]
    size = 27 if len(tasks) <= 10 else 22
    width, height = size * len(tasks), size * len(row["matrix"])
    pairs = (("base", base_accuracies(results)), ("own model", results["individual"]))
    beneath = [(name, accuracies) for name, accuracies in pairs if accuracies]
    floor = accuracy_floor(results)

    def fill(
        area: Axes, lines: Sequence[Sequence[float]], names: Sequence[str], below: Sequence[str]
    ) -> None:
        padded = [[*line, *[None] * (len(tasks) - len(line))] for line in lines]
        strength = [[None if a is None else (a - floor) / (1 - floor) for a in line] for line in padded]
        text = [["" if a is None else f"{100 * a:.0f}" for a in line] for line in padded]
        cells(area, strength, text, names, below)

    def content(figure: Figure) -> None:
        fill(axes(figure, 106, 2, width, height), row["matrix"], [f"+ {task}" for task in tasks], [])
        bounds = axes(figure, 106, height + 12, width, size * len(beneath))
        fill(bounds, [accuracies for _, accuracies in beneath], [name for name, _ in beneath], tasks)

    label = f"Accuracy matrix of {row['label']}"
    return draw(108 + width, 12 + height + size * len(beneath) + 84, label, content)


def accuracy_floor(results: Results) -> float:
    """The accuracy that is blank in every matrix: the lowest of all, rounded down to ten per cent."""
    found = [a for row in merges(results) for after in row["matrix"] for a in after]
    found += [*(base_accuracies(results) or []), *results["individual"]]
    return min(0.9, int(10 * min(found)) / 10)


def energy(row: Row) -> str:
    """Where the energy of each task vector went: a bar per task, in the parts of ``ENERGY``."""
    entries = row["energy"]
    height = 26 * len(entries)

    def content(figure: Figure) -> None:
        area = axes(figure, 118, 4, 300, height)
        start = [0.0] * len(entries)
        for part in ENERGY:
            shares = [max(0.0, entry[part]) for entry in entries]
            area.barh(range(len(entries)), shares, 0.72, start, color=paint(part))
            for y, (left, share) in enumerate(zip(start, shares, strict=True)):
                if share >= 0.09:
                    dark = part in ("projection", "not_merged")
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
    """Adaptation loss at one task (counted from 0), a line per method; same scale for all tasks."""
    rows = with_part(results, "losses")
    top = max((value for row in rows for line in row["losses"] for value in line), default=1.0)
    name = results["order"][task]

    def content(figure: Figure) -> None:
        area = axes(figure, 34, 26, 168, 110)
        for number, row in enumerate(rows):
            curve = row["losses"][task] if task < len(row["losses"]) else []
            colour = paint(series_colours(results)[row["label"]])
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
    own, base = mean_so_far(results["individual"]), base_accuracies(results)
    steps = range(1, len(own) + 1)
    ends = [("individual models", own, "--")]
    if base:
        ends.append(("base alone", mean_so_far(base), ":"))
        area.fill_between(steps, mean_so_far(base), own, color=paint("band"), lw=0)
    for _, line, style in ends:
        area.plot(steps, line, style, color=paint("muted"), lw=1.4)
    return [(label, line[-1], "muted") for label, line, _ in ends]


def _merge_lines(area: Axes, results: Results) -> list[tuple[str, float, str]]:
    colours = series_colours(results)
    ends = []
    for number, row in enumerate(merges(results)):
        line = [mean(after) for after in row["matrix"]]
        colour = colours[row["label"]]
        marker = _MARKERS[number % len(_MARKERS)]
        area.plot(range(1, len(line) + 1), line, color=paint(colour), marker=marker, ms=5, lw=2)
        ends.append((row["label"], line[-1], colour))
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
