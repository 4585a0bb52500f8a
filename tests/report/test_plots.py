import re
from xml.etree import ElementTree

import numpy as np
import pytest

from mingle.report import curves, heatmap, plots
from mingle.report.canvas import SERIES, THEME, featured, series_colours, short, spread, themed
from mingle.report.reading import part
from tests.report import made
from tests.report.made_tables import SMALL, costs, demo, methods, sweep, two_curves


def texts(svg):
    return [
        "".join(e.itertext()).strip() for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("}text")
    ]


def test_colours_are_told_apart_by_their_light_value():
    light = [value for value, _ in THEME.values()]
    assert len(set(light)) == len(light)


def test_a_method_keeps_its_colour_and_bounds_are_grey(results):
    colours = series_colours(results)
    assert colours.pop("base alone") == colours.pop("individual models") == "muted"
    assert list(colours.values()) == list(SERIES[:6])


def test_themed_leaves_no_theme_colour_behind(small):
    svg = themed(plots.accuracy_over_steps(small))
    assert "var(--series-0)" in svg
    assert not any(light in svg for light, _ in THEME.values())


def test_only_the_best_have_colours_of_their_own_where_rows_are_many():
    found = methods((42,), **SMALL)
    colours = series_colours(found)
    assert sorted(set(colours.values())) == sorted([*SERIES, "muted", "other"])
    assert colours["mingle"] != "other"
    assert colours["average"] == colours["oracle router"] == colours["TIES"] == "other"
    assert featured(found)[0]["label"] == "NuFilt"


def test_matrix_shows_every_accuracy_and_the_bounds(results):
    row = results["rows"][6]
    written = texts(plots.accuracy_matrix(results, row))
    numbers = [text for text in written if text.isdigit()]
    assert len(numbers) == 36 + 2 * 8
    assert f"{100 * part(row, 'matrix')[-1][0]:.0f}" in numbers
    assert {"base", "own model", "+ flags"} <= set(written)


def test_bounds_of_a_matrix_stand_in_the_order_of_its_tasks():
    found = demo(layers=6)
    found["orders"][0]["tasks"] = found["suite"]["tasks"]
    row = found["rows"][6]
    numbers = [text for text in texts(plots.accuracy_matrix(found, row)) if text.isdigit()]
    assert numbers[36:44] == [f"{100 * made.BASE[task]:.0f}" for task in made.order(42)]


def test_lines_are_named_with_their_last_value(results):
    written = texts(plots.accuracy_over_steps(results))
    assert f"opcm  {100 * results['rows'][5]['mean']['acc']:.1f}" in written
    assert not any(
        text.startswith("opcm") for text in texts(plots.accuracy_over_steps(results, compact=True))
    )
    assert f"+ {short(results['orders'][0]['tasks'][0])}" in written


def test_lines_over_orders_are_means_with_bands():
    one, three = (methods(seeds, tasks=3, layers=6) for seeds in ((42,), (42, 43, 44)))
    written = texts(plots.accuracy_over_steps(three))
    row = next(row for row in three["rows"] if row["label"] == "mingle")
    assert f"mingle  {100 * row['mean']['acc']:.1f}" in written
    assert {"1", "2", "3", "number of merged tasks"} <= set(written)
    bands = [plots.accuracy_over_steps(found).count("opacity: 0.13") for found in (one, three)]
    assert bands[0] == 0
    assert bands[1] >= 8


def test_labels_are_spread_in_order():
    places = spread([0.5, 0.1, 0.52, 0.9], gap=0.1)
    assert sorted(range(4), key=places.__getitem__) == [1, 0, 2, 3]
    assert np.diff(sorted(places)).min() > 0.0999
    assert spread([3.0], gap=1) == [3.0]


def test_energy_labels_large_parts_only(results):
    row = results["rows"][6]
    row["cells"][0]["energy"] = [
        {"task": "t", "kept": 0.7, "projection": 0.0, "rank": 0.25, "not_merged": 0.05}
    ]
    assert {"70", "25"} <= set(texts(plots.energy(row)))
    assert "5" not in texts(plots.energy(row))


def test_loss_of_a_method_without_it_is_not_drawn(small):
    fewer = small | {"rows": small["rows"][:7]}
    assert plots.loss(small, 0).count("<path") > plots.loss(fewer, 0).count("<path")


@pytest.mark.parametrize("tasks", [1, 20])
def test_any_number_of_tasks(small, tasks):
    order = [f"task {i}" for i in range(tasks)]
    matrix = [[0.5] * (t + 1) for t in range(tasks)]
    gates = {"experts": order, "inputs": order, "layers": ["a.0.b"], "mean": [[[0.1] * tasks] * tasks]}
    small["orders"][0]["tasks"] = order
    small["bounds"] = {"base": dict.fromkeys(order, 0.2), "individual": dict.fromkeys(order, 0.9)}
    for row in small["rows"]:
        row["cells"][0] |= {"matrix": matrix, "gates": gates, "tasks": order}
    for svg in (
        plots.accuracy_over_steps(small),
        plots.accuracy_matrix(small, small["rows"][2]),
        heatmap.gate_summary(gates, 1.0, "x"),
        heatmap.gate_layers(gates, 1.0, "x"),
    ):
        ElementTree.fromstring(svg)


@pytest.mark.parametrize(
    ("values", "places", "scale"),
    [
        ([1, 2, 3, 5], [1, 2, 3, 5], ""),
        ([4, 8, 64], np.log10([4, 8, 64]), "log scale"),
        ([0.5, 0.9, 0.99, 0.999], [0.30103, 1, 2, 3], "log of the distance from 1"),
        ([0.0, 1.0, 10.0, 100.0], [-1, 0, 1, 2], "log scale, zero apart"),
        ([0, 1], [0, 1], ""),
        ([-5, 5], [-5, 5], ""),
        ([7], [7], ""),
        (["full", "light"], [0, 1], ""),
        ([None, True], [0, 1], ""),
    ],
)
def test_places_on_an_axis(values, places, scale):
    found, name = curves.axis_places(values)
    assert found == pytest.approx(list(places))
    assert name == scale


def test_sensitivity_has_a_tick_per_value_and_bars_over_orders():
    several, one = sweep((42, 43), **SMALL), sweep((42,), **SMALL)
    written = texts(curves.sensitivity(several, "gamma"))
    ticks = written[written.index("ACC %") + 1 : written.index("gamma (log scale, zero apart)")]
    assert ticks == ["0", "0.5", "1", "2", "5", "20"]
    assert "BWT" in written
    bars = [curves.sensitivity(found, "gamma").count("<path") for found in (several, one)]
    assert bars[0] > bars[1] + 6


def test_a_second_key_makes_a_curve_per_value():
    groups = curves.curve_groups(two_curves((42,), **SMALL), "rank")
    assert list(groups) == ["sites full", "sites light"]
    assert [row["point"]["rank"] for row in groups["sites light"]] == [4, 8, 16, 32, 64]


def test_failed_settings_are_left_out_of_the_curve():
    found = sweep((42,), **SMALL)
    found["rows"][2] = made.fail(found["rows"][2], [42], "no")
    assert [row["point"]["beta"] for row in curves.curve_groups(found, "beta")[""]] == [0.9, 0.99, 0.999]
    assert "0.5" not in texts(curves.sensitivity(found, "beta"))


def test_costs_name_the_coloured_points():
    found = costs((42, 43), **SMALL)
    written = texts(curves.cost(found, "seconds"))
    assert "seconds (log scale)" in written
    names = {row["label"] for row in featured(found)}
    assert {text.rsplit("  ", 1)[0] for text in written if "  " in text} == {
        short(name, 22) for name in names
    }


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
    kinds, blocks, places = heatmap.layer_grid(part(results["rows"][6], "gates")["layers"])
    assert kinds == ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    assert blocks == ["block 0"]
    assert places == [(0, j) for j in range(6)]


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
