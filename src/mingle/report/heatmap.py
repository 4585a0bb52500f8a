"""Heat maps: a grid of cells with numbers, and the gate activations of all layers of a method.

A cell's strength is its opacity, so that it fades into the page, be it light or dark.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mingle.report.canvas import axes, draw, paint, short

Image = NDArray[np.float64]


def cells(
    area: Axes,
    strength: Sequence[Sequence[float | None]],
    text: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
) -> None:
    """Fills axes with cells of strength −1…1 (blue above zero, orange below) and writes into them."""
    values = np.array([[np.nan if v is None else v for v in line] for line in strength], dtype=np.float64)
    area.imshow(_colours(values), interpolation="none", aspect="auto")
    size = 10.5 if values.shape[1] <= 10 else 8.5
    for y, line in enumerate(text):
        for x, written in enumerate(line):
            if written:
                colour = "#ffffff" if abs(values[y, x]) > 0.72 else paint("ink")
                area.text(x, y, written, ha="center", va="center_baseline", fontsize=size, color=colour)
    area.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    area.set_yticks(range(len(rows)), rows)
    area.tick_params(length=0, labelsize=10)
    for spine in area.spines.values():
        spine.set_visible(False)


def gate_limit(gates: Sequence[Mapping[str, Any]], *, per_layer: bool) -> float:
    """The gate value of full colour: the largest of all methods, in single layers or in their average."""
    sizes = (np.abs(_mean(g) if per_layer else _mean(g).mean(0)).max() for g in gates)
    return float(max(sizes, default=0.0)) or 1.0


def gate_summary(gates: Mapping[str, Any], limit: float, label: str) -> str:
    """Mean gates averaged over all layers: rows are inputs of a task, columns are experts."""
    values = _mean(gates).mean(0)
    inputs, experts = ([short(name) for name in gates[side]] for side in ("inputs", "experts"))
    size = 37 if len(experts) <= 10 else 25

    def content(figure: Figure) -> None:
        area = axes(figure, 112, 4, size * len(experts), size * len(inputs))
        written = [[_number(value) if size > 30 else "" for value in line] for line in values]
        cells(area, (values / limit).tolist(), written, inputs, experts)

    width, height = 118 + size * len(experts), 4 + size * len(inputs) + 92
    return draw(width, height, f"Mean gates of {label}, averaged over all layers", content)


def gate_layers(gates: Mapping[str, Any], limit: float, label: str) -> str:
    """Mean gates of every layer: one small map each, blocks from top to bottom, kinds side by side."""
    values = _mean(gates)
    kinds, blocks, places = layer_grid(gates["layers"])
    tall, wide = values.shape[1:]
    # All maps lie in one image: a cell is one pixel of it, and empty pixels keep the maps apart.
    sheet = np.full((len(blocks) * (tall + 1) - 1, len(kinds) * (wide + 1) - 1), np.nan)
    for layer, (block, kind) in zip(values, places, strict=True):
        y, x = block * (tall + 1), kind * (wide + 1)
        sheet[y : y + tall, x : x + wide] = layer
    side = max(34.0, min(112.0, 900 / len(kinds)))
    width, height = side * len(kinds), side * len(blocks)

    def content(figure: Figure) -> None:
        area = axes(figure, 74, 22, width, height)
        area.imshow(_colours(sheet / limit), interpolation="none", aspect="auto")
        middle = [kind * (wide + 1) + (wide - 1) / 2 for kind in range(len(kinds))]
        area.set_xticks(middle, [short(kind, max(4, int(side / 6))) for kind in kinds])
        area.set_yticks([b * (tall + 1) + (tall - 1) / 2 for b in range(len(blocks))], blocks)
        area.tick_params(length=0, labelsize=10)
        area.xaxis.tick_top()
        for spine in area.spines.values():
            spine.set_visible(False)
        _frames(area, places, (tall, wide))

    return draw(80 + width, 26 + height, f"Mean gates of {label} in every layer", content)


def layer_grid(names: Sequence[str]) -> tuple[list[str], list[str], list[tuple[int, int]]]:
    """Kinds (columns), blocks (rows), and the row and column of each layer.

    A name such as ``encoder.layers.3.mlp.fc1`` is the kind ``fc1`` of ``block 3``. Names without a block
    number are laid out six to a row, in their order.
    """
    parts = [re.fullmatch(r"(.*?)(\d+)\.(.+)", name) for name in names]
    found = [(part[1], int(part[2]), part[3]) for part in parts if part]
    if len(found) < len(names):
        rows = [f"{i + 1}–{min(i + 6, len(names))}" for i in range(0, len(names), 6)]
        return [""] * min(6, len(names)), rows, [(i // 6, i % 6) for i in range(len(names))]
    kinds = list(dict.fromkeys((stack, kind) for stack, _, kind in found))
    blocks = sorted({block for _, block, _ in found})
    tails = [kind.rsplit(".", 1)[-1] for _, kind in kinds]
    if len(set(tails)) < len(tails):
        tails = [kind for _, kind in kinds]
    places = [(blocks.index(block), kinds.index((stack, kind))) for stack, block, kind in found]
    return tails, [f"block {block}" for block in blocks], places


def _mean(gates: Mapping[str, Any]) -> Image:
    return np.array(gates["mean"], dtype=np.float64)


def _number(value: float) -> str:
    """Two decimals at most; what rounds to zero stays a plain 0."""
    text = re.sub(r"^(-?)0\.", r"\1.", f"{value:.2f}").replace("-", "−")
    return "0" if text in (".00", "−.00") else text


def _colours(values: Image) -> Image:
    """Red, green, blue and opacity of every cell; empty cells are transparent."""
    low, high = (
        np.array([int(paint(name)[i : i + 2], 16) / 255 for i in (1, 3, 5)]) for name in ("low", "high")
    )
    rgba = np.zeros((*values.shape, 4))
    rgba[..., :3] = np.where((values >= 0)[..., None], low, high)
    rgba[..., 3] = np.clip(np.abs(np.nan_to_num(values)), 0, 1)
    return rgba


def _frames(area: Axes, places: Sequence[tuple[int, int]], shape: tuple[int, int]) -> None:
    """A thin line around every map: maps without activity stay visible."""
    tall, wide = shape
    for block, kind in places:
        left, top = kind * (wide + 1) - 0.5, block * (tall + 1) - 0.5
        xs = [left, left + wide, left + wide, left, left]
        ys = [top, top, top + tall, top + tall, top]
        area.plot(xs, ys, color=paint("rule"), lw=0.8, clip_on=False)
