"""The table for a terminal, in Markdown, in LaTeX and as CSV."""

import csv
import io
import re
from collections.abc import Sequence

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from mingle.report.columns import Column, columns_of, definitions
from mingle.report.reading import Results, readable
from mingle.report.table import Line, lines, notes, title, values_used

LABEL = 26
"""Widest column of labels in a terminal; longer ones take a second line."""

_LEGEND = "not merged models but what they are measured against"


class Terminal:
    """The table for a terminal of any width: columns that do not fit stand in further tables beneath."""

    def __init__(self, results: Results) -> None:
        self.results = readable(results)
        self.lines = lines(self.results)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Called by rich."""
        columns = columns_of(self.results)
        yield Text(title(self.results), "bold")
        label = min(LABEL, max(len(_label(line)) for line in self.lines))
        shown: list[int] = []
        room = left = options.max_width - label - 3
        for place, column in enumerate(columns):
            width = max(_heading(column), *(len(line.cells[place].text) for line in self.lines)) + 3
            if shown and width > left:
                yield self._table(columns, shown, label)
                shown, left = [], room
            shown.append(place)
            left -= width
        yield self._table(columns, shown, label)
        said = [f"Dim: {_LEGEND}. Bold: best merge.", *notes(self.results), *values_used(self.results)]
        said += [f"{name}: {_meaning(formula, text)}" for name, formula, text in definitions(self.results)]
        yield Text("\n".join([*said, ""]), "dim")

    def _table(self, columns: Sequence[Column], shown: Sequence[int], label: int) -> Table:
        """Some columns; base and individual models are set apart from the merges."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("method", width=label, overflow="fold")
        for place in shown:
            table.add_column(columns[place].title, justify="right", min_width=_heading(columns[place]))
        last_bound = sum(line.bound for line in self.lines) - 1
        for number, line in enumerate(self.lines):
            style = "dim" if line.bound else ""
            cells = [
                Text(cell.text, "bold" if cell.best else style) for cell in map(line.cells.__getitem__, shown)
            ]
            table.add_row(Text(_label(line), style), *cells, end_section=number == last_bound)
        return table


def terminal(results: Results) -> Terminal:
    """The table for a terminal."""
    return Terminal(results)


def markdown(results: Results) -> str:
    """The table in Markdown, with what its columns mean beneath. Bounds are in italics."""
    results = readable(results)
    columns = columns_of(results)
    head = ["method", *(_plain(column.title) for column in columns)]
    body = ["| " + " | ".join(head) + " |", "|:--|" + "--:|" * len(columns)]
    for line in lines(results):
        label = _plain(_label(line))
        cells = [f"**{cell.text}**" if cell.best else cell.text for cell in line.cells]
        body.append("| " + " | ".join([f"*{label}*" if line.bound else label, *cells]) + " |")
    remarks = [f"*Italic*: {_LEGEND}. **Bold**: best merge."]
    remarks += [_plain(note) for note in [*notes(results), *values_used(results)]]
    meaning = [
        f"- {name}: " + (f"`{formula}`, {_plain(text)}." if formula else f"{_plain(text)}.")
        for name, formula, text in definitions(results)
    ]
    meaning[0] = meaning[0].replace("a[t][i]", "`a[t][i]`", 1)
    return "\n".join(
        [f"{_plain(title(results))}.", "", *body, "", *(f"{r}  " for r in remarks), "", *meaning]
    )


def latex(results: Results) -> str:
    """The table in LaTeX. Needs the packages booktabs and, for its notes, threeparttable."""
    results = readable(results)
    columns = columns_of(results)
    found = lines(results)
    body = [_latex_line(line) for line in found]
    cut = sum(line.bound for line in found)
    said = [f"Italic: {_LEGEND}. Bold: best merge.", *notes(results), *values_used(results)]
    meaning = [
        f"{_escaped(name) if i else _math(name)}: {f'{_math(formula)}, ' if formula else ''}{_escaped(text)}."
        for i, (name, formula, text) in enumerate(definitions(results))
    ]
    return "\n".join(
        [
            r"% \usepackage{booktabs,threeparttable}",
            r"\begin{table}",
            r"\centering",
            r"\begin{threeparttable}",
            rf"\caption{{{_escaped(title(results))}}}",
            rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
            r"\toprule",
            " & ".join(["method", *(_escaped(column.title) for column in columns)]) + r" \\",
            r"\midrule",
            *body[:cut],
            *([r"\midrule"] if 0 < cut < len(body) else []),
            *body[cut:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\begin{tablenotes}\footnotesize",
            *(rf"\item {text}" for text in [*map(_escaped, said), *meaning]),
            r"\end{tablenotes}",
            r"\end{threeparttable}",
            r"\end{table}",
        ]
    )


def as_csv(results: Results) -> str:
    """The table as CSV: a line per row, plain numbers as the results file has them, mean and std apart."""
    results = readable(results)
    columns = columns_of(results)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["row", "bound", "orders", *(f"{c.key}_{side}" for c in columns for side in ("mean", "std"))]
    )
    for line in lines(results):
        numbers = [value for cell in line.cells for value in (cell.mean, cell.std)]
        writer.writerow(
            [line.label, int(line.bound), line.orders, *("" if v is None else repr(v) for v in numbers)]
        )
    return out.getvalue()


def _label(line: Line) -> str:
    return f"{line.label} ({line.fewer})" if line.fewer else line.label


def _heading(column: Column) -> int:
    """The narrowest width of a column's title: its longest word."""
    return max(map(len, column.title.split()))


def _meaning(formula: str, text: str) -> str:
    return f"{formula}, {text}" if formula else text


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*\[\]<>|]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))


def _latex_line(line: Line) -> str:
    label = _escaped(_label(line))
    cells = [
        rf"\textbf{{{_escaped(cell.text)}}}" if cell.best else _escaped(cell.text) for cell in line.cells
    ]
    return " & ".join([rf"\textit{{{label}}}" if line.bound else label, *cells]) + r" \\"


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "$&#_%"},
    "−": "$-$",
    "±": r"$\pm$",
    "—": "---",
    "–": "--",
    "’": "'",
    "·": r"$\cdot$",
    "→": r"$\to$",
    "≥": r"$\ge$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "γ": r"$\gamma$",
    "λ": r"$\lambda$",
}
_MATH = {
    "mean": r"\mathrm{mean}",
    "individual": r"\mathrm{individual}",
    "Σ": r"\sum",
    "−": "-",
    "≥": r"\geq ",
}


def _escaped(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split()))


def _math(formula: str) -> str:
    """A definition's formula as inline mathematics."""
    for written, command in _MATH.items():
        formula = formula.replace(written, command)
    return f"${formula}$"
