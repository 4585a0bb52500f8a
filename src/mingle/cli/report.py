"""Tables and a page from stored results."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mingle.cli.console import Command


class Form(StrEnum):
    """What a table is written in."""

    terminal = "terminal"
    markdown = "markdown"
    latex = "latex"
    csv = "csv"


def report(
    results: Annotated[list[Path], typer.Argument(help="Results files of bench or demo.")],
    form: Annotated[
        Form | None,
        typer.Option("--format", help="How to print the tables  [default: terminal, markdown into a pipe]."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write a page of all results, with plots, too.")] = None,
) -> None:
    """Print stored results as tables; write one HTML page of all of them."""
    from rich.console import Console

    from mingle.benchmark import read_results
    from mingle.report import as_csv, latex, markdown, terminal, write_report

    stored = [read_results(path) for path in results]
    console = Console()
    chosen = form or (Form.terminal if console.is_terminal else Form.markdown)
    for number, table in enumerate(stored):
        if number:
            typer.echo()
        if chosen is Form.terminal:
            console.print(terminal(table))
        else:
            write = {Form.markdown: markdown, Form.latex: latex, Form.csv: as_csv}[chosen]
            typer.echo(write(table).rstrip("\n"))
    if out is not None:
        write_report(stored, out)
        typer.echo(str(out), err=True)


COMMANDS = (
    Command(report, "Example: `mingle report bench/table1-glyph8.json --format latex --out table1.html`"),
)
