"""The command line: the Python API under the same names."""

import os
from pathlib import Path
from typing import Annotated

import typer

from mingle import __version__
from mingle.cli import bench, convert, demo, evaluate, export, report, run, suite
from mingle.cli.console import main_with

app = typer.Typer(
    name="mingle",
    help="Test-time continual model merging: checkpoints of one base arrive in turn and become one model.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mingle {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(envvar="MINGLE_DATA", help="Folder of local models and data for the recipe suites."),
    ] = None,
) -> None:
    del version
    if data is not None:
        # Where the suites look, in worker processes too.
        os.environ["MINGLE_DATA"] = str(data)


for module in (demo, run, evaluate, export, bench, report, convert):
    for command in module.COMMANDS:
        app.command(*command.names, epilog=command.example)(command.function)

suites = typer.Typer(help="List suites, show one, build one.", no_args_is_help=True)
for command in suite.COMMANDS:
    suites.command(*command.names, epilog=command.example)(command.function)
app.add_typer(suites, name="suite")


def main() -> None:
    """Entry point of the ``mingle`` command."""
    main_with(app)
