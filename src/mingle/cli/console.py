"""What all commands share: progress on stderr, results on stdout, errors in one line."""

import json
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TextIO

import typer

from mingle.errors import ConfigError, MingleError

Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of text.")]


@dataclass(frozen=True)
class Command:
    """A command of the command line: its function, and an example shown under its help."""

    function: Callable[..., None]
    example: str
    names: tuple[str, ...] = ()


def main_with(app: typer.Typer) -> None:
    """Runs the app. Exit code 0: done; 1: it failed, with one clear line; 2: the call was wrong."""
    try:
        app()
    except MingleError as error:
        typer.echo(f"mingle: {visible(str(error))}", err=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except OSError as error:
        typer.echo(f"mingle: {error.filename or 'file'}: {error.strerror or error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("mingle: interrupted; what was merged before is unchanged", err=True)
        sys.exit(130)


def visible(text: str) -> str:
    """Text with control characters written out: names in files must not steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A callback ``(what, done, total)`` that draws a bar on stderr; silent when that is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading", total=None)

        def report(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield report


@contextmanager
def seed_warnings() -> Iterator[None]:
    """Shows warnings of seeds as errors are shown, in one line; all other warnings as ever."""
    from mingle.errors import SeedsWarning

    with warnings.catch_warnings():
        warnings.simplefilter("always", SeedsWarning)
        others = warnings.showwarning

        def show_warning(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, SeedsWarning):
                typer.echo(f"mingle: {visible(str(message))}", err=True)
            else:
                others(message, category, filename, lineno, file, line)

        warnings.showwarning = show_warning
        yield


def show(value: Mapping[str, Any] | list[Any], text: str, *, as_json: bool) -> None:
    """Prints a result on stdout, as JSON or as text."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False) if as_json else text)


def settings_text(settings: Mapping[str, Any]) -> str:
    """Options with the values that were used, wrapped to the width of a terminal."""
    if not settings:
        return "settings: none"
    text = "settings: " + ", ".join(f"{name} {value}" for name, value in settings.items())
    return textwrap.fill(text, 100, subsequent_indent="  ")


def megabytes(size: int) -> str:
    """Bytes as MB (10^6)."""
    return f"{size / 1e6:.2f} MB"
