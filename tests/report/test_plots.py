import re
from xml.etree import ElementTree

import numpy as np
import pytest

from mingle.report import heatmap, plots
from mingle.report.canvas import THEME, series_colours, short, spread, themed


def texts(svg):
    return [
        "".join(e.itertext()).strip() for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("}text")
    ]


def test_colours_are_told_apart_by_their_light_value():
    light = [value for value, _ in THEME.values()]
    assert len(set(light)) == len(light)


def test_a_method_keeps_its_colour_and_bounds_are_grey(results):
    names = list(series_colours(results).values())
    assert names[:2] == ["muted", "muted"]
    assert len(set(names[2:])) == 6


def test_themed_leaves_no_theme_colour_behind(small):
    svg = themed(plots.accuracy_over_steps(small))
    assert "var(--series-0)" in svg
    assert not any(light in svg for light, _ in THEME.values())


def test_matrix_shows_every_accuracy_and_the_bounds(results):
    row = results["rows"][6]
    written = texts(plots.accuracy_matrix(results, row))
    numbers = [text for text in written if text.isdigit()]
    assert len(numbers) == 36 + 2 * 8
    assert f"{100 * row['matrix'][-1][0]:.0f}" in numbers
    assert {"base", "own model", "+ flags"} <= set(written)


def test_lines_are_named_with_their_last_value(results):
    written = texts(plots.accuracy_over_steps(results))
    assert f"opcm  {100 * results['rows'][5]['metrics']['acc']:.1f}" in written
    assert not any(
        text.startswith("opcm") for text in texts(plots.accuracy_over_steps(results, compact=True))
    )


def test_labels_are_spread_in_order():
    places = spread([0.5, 0.1, 0.52, 0.9], gap=0.1)
    assert sorted(range(4), key=places.__getitem__) == [1, 0, 2, 3]
    assert np.diff(sorted(places)).min() > 0.0999
    assert spread([3.0], gap=1) == [3.0]


def test_energy_labels_large_parts_only(results):
    row = results["rows"][6]
    row["energy"] = [{"task": "t", "kept": 0.7, "projection": 0.0, "rank": 0.25, "not_merged": 0.05}]
    assert {"70", "25"} <= set(texts(plots.energy(row)))
    assert "5" not in texts(plots.energy(row))


def test_loss_of_a_method_without_it_is_not_drawn(small):
    assert plots.loss(small, 0).count("<path") > plots.loss(small | {"rows": small["rows"][:3]}, 0).count(
        "<path"
    )


@pytest.mark.parametrize("tasks", [1, 20])
def test_any_number_of_tasks(small, tasks):
    order = [f"task {i}" for i in range(tasks)]
    matrix = [[0.5] * (t + 1) for t in range(tasks)]
    gates = {"experts": order, "inputs": order, "layers": ["a.0.b"], "mean": [[[0.1] * tasks] * tasks]}
    small |= {"order": order, "base": [0.2] * tasks, "individual": [0.9] * tasks}
    for row in small["rows"]:
        row |= {"matrix": matrix, "gates": gates}
    for svg in (
        plots.accuracy_over_steps(small),
        plots.accuracy_matrix(small, small["rows"][2]),
        heatmap.gate_summary(gates, 1.0, "x"),
        heatmap.gate_layers(gates, 1.0, "x"),
    ):
        ElementTree.fromstring(svg)


def test_gates_are_blue_above_zero_orange_below_and_blank_at_zero():
    positive, negative, nothing, empty = heatmap._colours(np.array([0.5, -1.0, 0.0, np.nan]))
    assert positive[2] > positive[0]
    assert negative[0] > negative[2]
    assert [c[3] for c in (positive, negative, nothing, empty)] == [0.5, 1, 0, 0]


def test_gate_summary_averages_over_layers():
    gates = {"experts": ["a", "b"], "inputs": ["a", "b"], "layers": ["l.0.x", "l.1.x"]}
    gates["mean"] = [[[1.0, 0.0], [-0.5, 0.25]], [[0.0, 0.0], [-0.5, 0.25]]]
    assert [t for t in texts(heatmap.gate_summary(gates, 1.0, "m")) if t not in "ab"] == [
        ".50",
        "0",
        "−.50",
        ".25",
    ]
    assert heatmap.gate_limit([gates], per_layer=False) == 0.5
    assert heatmap.gate_limit([gates], per_layer=True) == 1.0
    assert heatmap.gate_limit([{**gates, "mean": [[[0.0]]]}], per_layer=True) == 1.0


def test_layers_are_placed_by_block_and_kind(results):
    kinds, blocks, places = heatmap.layer_grid(results["rows"][6]["gates"]["layers"])
    assert kinds == ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    assert blocks == [f"block {i}" for i in range(6)]
    assert places == [(i, j) for i in range(6) for j in range(6)]


def test_layers_of_two_stacks_do_not_share_a_column():
    names = ["encoder.block.0.layer.0.SelfAttention.q", "decoder.block.0.layer.0.SelfAttention.q"]
    kinds, blocks, places = heatmap.layer_grid(names)
    assert (len(kinds), blocks) == (2, ["block 0"])
    assert places == [(0, 0), (0, 1)]


def test_layers_without_block_numbers_are_laid_out_in_order():
    kinds, blocks, places = heatmap.layer_grid([f"layer{chr(97 + i)}" for i in range(8)])
    assert (len(kinds), blocks) == (6, ["1–6", "7–8"])
    assert places[-1] == (1, 1)


def test_names_are_shortened_and_printable():
    assert short("a\x00b\n") == "a\ufffdb\ufffd"
    assert len(short("x" * 99)) == 15


def test_ids_of_different_plots_differ(small):
    ids = [
        re.findall(r' id="([^"]+)"', svg)
        for svg in (plots.accuracy_over_steps(small), plots.accuracy_over_steps(small, compact=True))
    ]
    assert ids[0]
    assert not set(ids[0]) & set(ids[1])
