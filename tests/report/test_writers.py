import csv
import io
import re

import pytest
from matplotlib.mathtext import MathTextParser
from rich.console import Console

from mingle.report import as_csv, latex, markdown, terminal
from mingle.report.reading import readable
from mingle.report.table import lines
from tests.report.made_tables import EVERY, SMALL

KINDS = pytest.mark.parametrize("kind", sorted(EVERY))


def printed(results, width=160):
    out = io.StringIO()
    Console(file=out, width=width).print(terminal(results))
    return out.getvalue()


def body(text):
    found = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in found]


@KINDS
def test_markdown_has_equal_columns_and_every_row(kind):
    results = EVERY[kind](**SMALL)
    table = body(markdown(results))
    found = lines(readable(results))
    assert {len(row) for row in table} == {1 + len(found[0].cells)}
    assert len(table) == 2 + len(found)
    assert table[2][0] == "*base alone*"


@KINDS
def test_csv_has_the_plain_numbers(kind):
    results = readable(EVERY[kind](**SMALL))
    table = list(csv.DictReader(io.StringIO(as_csv(EVERY[kind](**SMALL)))))
    assert [row["row"] for row in table] == [line.label for line in lines(results)]
    for row, line in zip(table, lines(results), strict=True):
        assert int(row["orders"]) == line.orders
        for key, cell in zip(results["columns"], line.cells, strict=True):
            assert row[f"{key}_mean"] == ("" if cell.mean is None else repr(cell.mean))
            assert row[f"{key}_std"] == ("" if cell.std is None else repr(cell.std))


@KINDS
def test_latex_is_balanced_and_its_mathematics_parses(kind):
    text = latex(EVERY[kind](**SMALL))
    stack = []
    for word, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if word == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    bare = re.sub(r"\\[\\{}$&#_%]", "", text)
    assert bare.count("{") == bare.count("}")
    rows = text[text.index(r"\toprule") : text.index(r"\bottomrule")].splitlines()
    spec = re.search(r"\{tabular\}\{(\w+)\}", text)[1]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows if row.endswith(r"\\")} == {len(spec) - 1}
    assert text.isascii()
    for formula in set(re.findall(r"(?<!\\)\$[^$]*\$", text)):
        MathTextParser("path").parse(formula)


@KINDS
@pytest.mark.parametrize("width", [60, 200])
def test_terminal_shows_every_column_at_any_width(kind, width):
    results = EVERY[kind](**SMALL)
    text = printed(results, width)
    assert max(map(len, text.splitlines())) <= width
    for line in lines(readable(results)):
        for cell in line.cells:
            assert cell.text in text


@pytest.mark.parametrize("form", [markdown, printed, latex])
def test_every_metric_is_defined(form, results):
    text = " ".join(form(results).split())
    for part in ("time of all merging steps", "same batches", "paper's appendix", "own fine-tuned model"):
        assert part in text
    if form is not latex:
        assert "1/(T−1) Σ_{i<T} (a[T][i] − a[i][i])" in text
    else:
        assert r"$1/(T-1) \sum_{i<T} (a[T][i] - a[i][i])$" in text


@pytest.mark.parametrize("form", [markdown, printed, latex])
def test_notes_and_failures_stand_under_the_table(form):
    text = " ".join(form(EVERY["methods"]((42, 43), **SMALL)).split())
    assert "sample standard deviation over 2 orders" in text
    assert "Failed: TIES, orders 42, 43: a computation left" in text
    assert "MagMax (n = 1)" in text


def test_best_is_bold_and_bounds_are_italic(results):
    assert "**85." in markdown(results)
    assert r"\textbf{85." in latex(results)
    assert r"\textit{base alone}" in latex(results)


def test_hostile_label_stays_one_cell(results):
    results["rows"][2]["label"] = "a|b\n<b>*x*\\"
    assert "| a\\|b \\<b\\>\\*x\\*\\\\ |" in markdown(results)
    results["rows"][2]["label"] = "50% & $x_1$ {~^#}\\"
    written = r"50\% \& \$x\_1\$ \{\textasciitilde{}\textasciicircum{}\#\}\textbackslash{} & "
    assert written in latex(results)


def test_terminal_shows_labels_as_they_are(results):
    results["rows"][2]["label"] = "[red]x[/red]"
    assert "[red]x[/red]" in printed(results)


def test_an_empty_line_stands_after_the_last_bound_only(results):
    rows = [line.strip() for line in printed(results).splitlines()]
    first = next(i for i, line in enumerate(rows) if line.startswith("base alone"))
    assert [i for i, line in enumerate(rows[first : first + 8]) if not line] == [2]
