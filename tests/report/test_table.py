import io

import pytest
from rich.console import Console

from mingle.errors import ConfigError
from mingle.report import markdown, terminal
from mingle.report.formats import counted, megabytes, percent, points, seconds
from mingle.report.table import lines


def body(text):
    found = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found]


def printed(results):
    out = io.StringIO()
    Console(file=out, width=140).print(terminal(results))
    return out.getvalue()


def test_numbers_and_dashes(results):
    row = results["rows"][2]
    row["metrics"] = {
        "acc": 0.8414,
        "bwt": -0.0223,
        "fwt": 0.004,
        "normalised_acc": 0.80349,
        "mixed_acc": None,
    }
    row |= {"seconds": 12.34, "bytes": 1_234_567}
    assert body(markdown(results))[4] == [
        "average", "84.1", "−2.2", "80.3", "—", "**+0.4**", "12.3", "1.23",
    ]  # fmt: skip


def test_bounds_come_first_and_are_set_apart(results):
    results["rows"].reverse()
    found = lines(results)
    assert [line.label for line in found[:2]] == ["individual models", "base alone"]
    assert [line.bound for line in found] == [True] * 2 + [False] * 6
    assert body(markdown(results))[2][0] == "*individual models*"
    # An empty line stands after the last bound and nowhere else between the rows.
    rows = [line.strip() for line in printed(results).splitlines()]
    first = next(i for i, line in enumerate(rows) if line.startswith("individual models"))
    assert [i for i, line in enumerate(rows[first : first + 8]) if not line] == [2]


def test_best_of_the_merges_is_marked_and_bounds_are_not(results):
    for row in results["rows"]:
        row["metrics"]["acc"] = 0.5
    results["rows"][0]["metrics"]["acc"] = 0.9
    results["rows"][4]["metrics"]["acc"] = 0.51
    marked = [line.label for line in lines(results) if line.cells[0].best]
    assert marked == ["ties"]


def test_a_single_merge_is_not_best_of_anything(results):
    results["rows"] = results["rows"][:3]
    assert not any(cell.best for line in lines(results) for cell in line.cells)


@pytest.mark.parametrize("form", [markdown, printed])
def test_every_metric_is_defined(form, results):
    text = " ".join(form(results).split())
    forward = ("1/(T−1) Σ_{t≥2} (a[t][t] − individual[t])", "paper's appendix")
    assert all((part in text) == (form is markdown) for part in forward)  # a terminal has no room for FWT
    for part in (
        "mean_i a[T][i]",
        "1/(T−1) Σ_{i<T} (a[T][i] − a[i][i])",
        "mean_i a[T][i] / individual[i]",
        "same batches",
    ):
        assert part in text


@pytest.mark.parametrize("form", [markdown, printed])
def test_conditions_of_a_score_are_named(form, results):
    text = " ".join(form(results).split())
    assert "mingle (reference): gates are averaged over each batch" in text
    assert "mingle: gates" not in text


def test_hostile_label_stays_one_cell(results):
    results["rows"][2]["label"] = "a|b\n<b>*x*\\"
    assert "| a\\|b \\<b\\>\\*x\\*\\\\ |" in markdown(results)


def test_terminal_shows_labels_as_they_are(results):
    results["rows"][2]["label"] = "[red]x[/red]"
    assert "[red]x[/red]" in printed(results)


@pytest.mark.parametrize("form", [markdown, terminal])
def test_unknown_schema_is_refused(form, results):
    results["schema"] = 2
    with pytest.raises(ConfigError, match="expected schema 1, found 2"):
        form(results)


def test_incomplete_results_are_refused(results):
    del results["rows"], results["order"]
    with pytest.raises(ConfigError, match="order, rows missing"):
        markdown(results)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (percent(1.0), "100.0"),
        (percent(None), "—"),
        (points(-0.0004), "0.0"),
        (points(0.0), "0.0"),
        (points(-0.0006), "−0.1"),
        (points(0.012), "+1.2"),
        (points(None), "—"),
        (seconds(9.96), "10.0"),
        (seconds(1234.5), "1234"),
        (seconds(None), "—"),
        (megabytes(0), "0.00"),
        (megabytes(512_300_000), "512.3"),
        (megabytes(None), "—"),
        (counted(1, "checkpoint"), "One checkpoint"),
        (counted(8, "checkpoint"), "Eight checkpoints"),
        (counted(20, "checkpoint"), "20 checkpoints"),
    ],
)
def test_formats(written, expected):
    assert written == expected
