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
    from mingle.errors import ConfigError, translated
    from mingle.report import as_csv, latex, markdown, terminal, write_report

    console = Console()
    chosen = form or (Form.terminal if console.is_terminal else Form.markdown)
    write = {Form.terminal: terminal, Form.markdown: markdown, Form.latex: latex, Form.csv: as_csv}[chosen]
    stored = [read_results(path) for path in results]
    tables = []
    for path, found in zip(results, stored, strict=True):
        try:
            with translated(ConfigError, "not results that mingle wrote"):
                tables.append(write(found))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    for number, table in enumerate(tables):
        if number:
            typer.echo()
        if isinstance(table, str):
            typer.echo(table.rstrip("\n"))
        else:
            console.print(table)
    if out is not None:
        with translated(ConfigError, f"{', '.join(map(str, results))}: not results that mingle wrote"):
            write_report(stored, out)
        typer.echo(str(out), err=True)


COMMANDS = (
    Command(report, "Example: `mingle report bench/table1-glyph8.json --format latex --out table1.html`"),
)
