import statistics

import pytest

from mingle.benchmark import TABLES
from mingle.errors import ConfigError
from mingle.report import formats
from mingle.report.columns import COLUMNS, columns_of, definitions
from mingle.report.reading import readable
from mingle.report.table import lines, notes, title, values_used
from tests.report import made
from tests.report.made_tables import DIED, DIVERGED, SMALL, methods, pivot, sweep

COST = {"seconds", "megabytes", "images_per_second", "parameters", "gate_parameters", "relative_speed"}


def by_label(results):
    return {line.label: line for line in lines(results)}


def test_columns_of_every_table_are_known():
    used = {key for name in TABLES.names() for key in TABLES.get(name).columns}
    assert used <= set(COLUMNS)
    assert all(column.meaning for column in COLUMNS.values())


def test_a_column_of_somebody_elses_table_is_shown_as_it_is(small):
    small["columns"] = ["acc", "kernel_calls"]
    small["rows"][2]["mean"]["kernel_calls"] = 12345.678
    column = columns_of(small)[1]
    assert (column.title, lines(small)[2].cells[1].number) == ("kernel calls", "1.235e+04")
    assert definitions(small)[-1] == ("kernel calls", "", "as the results file has it")


def test_numbers_are_means_with_deviations_over_orders():
    found = methods((1, 2, 3), **SMALL)
    line, row = by_label(found)["OPCM"], next(r for r in found["rows"] if r["label"] == "OPCM")
    accuracies = [cell["metrics"]["acc"] for cell in row["cells"]]
    mean, std = statistics.fmean(accuracies), statistics.stdev(accuracies)
    assert line.cells[0].text == f"{100 * mean:.1f} ± {100 * std:.1f}"
    assert line.cells[0].mean == pytest.approx(mean)
    assert line.cells[0].std == pytest.approx(std)
    assert "over 3 orders of the tasks (seeds 1–3)" in notes(found)[0]


def test_one_order_has_plain_numbers(results):
    assert not any(cell.spread for line in lines(results) for cell in line.cells)
    assert notes(results)[0] == "One order of the tasks (seed 42)."


def test_numbers_and_dashes(results):
    results["rows"][2]["mean"] = {
        "acc": 0.8414, "bwt": -0.0223, "fwt": 0.004, "normalised_acc": 0.80349, "mixed_acc": None,
        "seconds": 12.34, "megabytes": 1.234567,
    }  # fmt: skip
    written = [cell.text for cell in by_label(results)["average"].cells]
    assert written == ["84.1", "−2.2", "80.3", "—", "+0.4", "12.3", "1.23"]


def test_bounds_come_first_and_are_set_apart(results):
    results["rows"].reverse()
    found = lines(results)
    assert [line.label for line in found[:2]] == ["individual models", "base alone"]
    assert [line.bound for line in found] == [True] * 2 + [False] * 6


def test_best_of_the_merges_is_marked_and_bounds_are_not(results):
    for row in results["rows"]:
        row["mean"] |= {"acc": 0.5, "seconds": 3.0}
    results["rows"][0]["mean"] |= {"acc": 0.9, "seconds": 0.1}
    results["rows"][4]["mean"] |= {"acc": 0.51, "seconds": 2.0}
    assert [line.label for line in lines(results) if line.cells[0].best] == ["ties"]
    assert [line.label for line in lines(results) if line.cells[5].best] == ["ties"]


@pytest.mark.parametrize("change", [{"one_model": False}, {"needs_labels": True}])
def test_rows_that_know_more_are_not_marked_and_said(results, change):
    results["rows"][4] |= change
    results["rows"][4]["mean"]["acc"] = 0.99
    assert not by_label(results)["ties"].cells[0].best
    assert [note for note in notes(results) if note.endswith("so not compared with the others: ties.")]


def test_a_single_merge_is_not_best_of_anything(results):
    results["rows"] = results["rows"][:3]
    assert not any(cell.best for line in lines(results) for cell in line.cells)


def test_failures_are_shown_with_their_reason():
    found = methods((42, 43, 44), **SMALL)
    assert [cell.text for cell in by_label(found)["TIES"].cells] == ["failed", *["—"] * 8]
    assert by_label(found)["MagMax"].fewer == "n = 2"
    said = [note for note in notes(found) if note.startswith("Failed")]
    assert said == [f"Failed: TIES, orders 42–44: {DIVERGED}.", f"Failed: MagMax, order 43: {DIED}."]


def test_rows_with_fewer_orders_say_so_and_bounds_do_not():
    fewer = {line.label: line.fewer for line in lines(methods((42, 43, 44), **SMALL)) if line.fewer}
    assert fewer == {"MagMax": "n = 2", "mingle, sequential (MINGLE-Seq)": "n = 2"}


def test_conditions_of_a_score_are_named(results):
    text = " ".join(notes(results))
    assert (
        "Gates averaged over each batch, so a score depends on what shares a batch: mingle (reference)."
        in text
    )
    assert "Seed samples balanced by their true labels: mingle (reference)." in text
    results["rows"] = [row | {"settings": {"seed_pool": "scored"}} for row in results["rows"]]
    assert "Seed samples may be among the scored ones: all." in notes(results)


def test_presets_are_said_once_without_what_varies():
    assert values_used(sweep((42,), **SMALL)) == [
        "mingle, preset default: sites full, rank 16, lr 0.0006, steps 50, projection block, "
        "gate_reduction sample, gate_bias augmented, acts_on update, seeds random."
    ]


@pytest.mark.parametrize(
    ("gates", "said"), [("adapted", "lr 0.0006"), ("analytic", "router_ridge 0.01"), ("static", "sites full")]
)
def test_settings_that_say_nothing_about_the_gates_are_left_out(gates, said):
    results = sweep((42,), **SMALL)
    for row in results["rows"]:
        if row.get("settings"):
            row["settings"] |= {"gates": gates, "router_ridge": 0.01}
    (text,) = values_used(results)
    assert said in text
    assert ("lr" in text, "router_ridge" in text) == (gates == "adapted", gates == "analytic")


def test_pivot_has_a_row_per_method_and_the_mean_of_its_corruptions():
    raw = pivot(**SMALL)
    found = readable(raw)
    assert [column.title for column in columns_of(found)][:2] == ["clean %", "motion blur %"]
    assert [line.label for line in lines(found)] == [
        "base alone", "individual models", "average", "OPCM", "mingle",
    ]  # fmt: skip
    parts = [row for row in raw["rows"] if row["point"].get("method") == "OPCM"]
    assert by_label(found)["OPCM"].cells[1].mean == parts[1]["mean"]["acc"]
    corrupted = [row["cells"] for row in parts if row["corruption"]]
    corrupted = [row["cells"] for row in parts if row["corruption"]]
    by_order = [statistics.fmean(cells[i]["metrics"]["acc"] for cells in corrupted) for i in range(3)]
    cell = by_label(found)["OPCM"].cells[-1]
    assert cell.mean == pytest.approx(statistics.fmean(by_order))
    assert cell.std == pytest.approx(statistics.stdev(by_order))


def test_an_order_with_a_failed_corruption_has_no_mean():
    found = readable(pivot(**SMALL))
    line = by_label(found)["average"]
    assert line.fewer == "n = 2"
    row = next(row for row in found["rows"] if row["label"] == "average")
    assert ["corrupted" in cell["metrics"] for cell in row["cells"] if cell["status"] == "done"] == [
        False, True, True,
    ]  # fmt: skip
    assert f"Failed: average, order 42: motion blur: {DIVERGED}." in notes(found)


def test_title_names_suite_tasks_and_samples(results):
    assert title(results) == "Demo · glyph8, eight tasks, up to 200 test samples each"


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda r: r.update(schema=1), "expected schema 2, found 1"),
        (lambda r: (r.pop("rows"), r.pop("orders")), "orders, rows missing"),
        (lambda r: r["rows"][1].pop("mean"), r"rows\[1\].mean missing"),
        (lambda r: r["rows"][2]["cells"][0].pop("matrix"), r"rows\[2\].cells\[0\].matrix missing"),
    ],
)
def test_incomplete_results_are_refused(small, break_it, message):
    break_it(small)
    with pytest.raises(ConfigError, match=message):
        readable(small)


def test_failed_cells_need_no_numbers(small):
    small["rows"][2] = made.fail(small["rows"][2], [42], "no")
    assert readable(small) is small


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (formats.percent(1.0), "100.0"),
        (formats.percent(None), "—"),
        (formats.points(-0.0004), "0.0"),
        (formats.points(-0.0006), "−0.1"),
        (formats.points(0.012), "+1.2"),
        (formats.points(None), "—"),
        (formats.seconds(9.96), "10.0"),
        (formats.seconds(1234.5), "1234"),
        (formats.seconds(None), "—"),
        (formats.megabytes(0), "0.00"),
        (formats.megabytes(512.3), "512.3"),
        (formats.megabytes(None), "—"),
        (formats.count(83_000), "83.0 k"),
        (formats.count(173_100_000), "173.10 M"),
        (formats.count(12), "12"),
        (formats.count(None), "—"),
        (formats.rate(841.2), "841"),
        (formats.ratio(0.924), "0.92"),
        (formats.counted(1, "checkpoint"), "One checkpoint"),
        (formats.counted(8, "checkpoint"), "Eight checkpoints"),
        (formats.counted(20, "checkpoint"), "20 checkpoints"),
        (formats.span([42, 43, 44]), "42–44"),
        (formats.span([42, 44]), "42, 44"),
        (formats.span([42, 43]), "42, 43"),
    ],
)
def test_formats(written, expected):
    assert written == expected
