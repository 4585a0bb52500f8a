"""The command line: the Python API under the same names."""

import typer

from mingle.cli import demo, evaluate, run
from mingle.cli.console import main_with

app = typer.Typer(
    name="mingle",
    help="Test-time continual model merging: checkpoints of one base arrive in turn and become one model.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)
for module in (demo, run, evaluate):
    for command in module.COMMANDS:
        app.command(*command.names, epilog=command.example)(command.function)


def main() -> None:
    """Entry point of the ``mingle`` command."""
    main_with(app)
