"""The benchmark: every table and figure with one command each."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from mingle.cli.console import Command, Json, progress_bar, show


def bench(
    table: Annotated[str | None, typer.Argument(help="Table or figure  [default: list them].")] = None,
    suite: Annotated[str, typer.Option(help="Suite to merge: a name or a folder.")] = "glyph8",
    orders: Annotated[str, typer.Option(help="Seeds of the task orders, e.g. 42-51 or 42,45.")] = "42-51",
    labelled_orders: Annotated[
        int | None, typer.Option(min=1, help="Orders of methods that train on labels  [default: 2].")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Score at most that many per task  [default: all].")
    ] = None,
    row: Annotated[
        list[str] | None, typer.Option(help="Only this row, by label or method; may be repeated.")
    ] = None,
    preset: Annotated[
        list[str] | None, typer.Option(help="The rows under this preset too; may be repeated.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of results and of finished cells.")] = Path("bench"),
    workers: Annotated[int | None, typer.Option(min=1, help="Processes  [default: one a core].")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each process.")] = 1,
    ray: Annotated[str | None, typer.Option(help="Run on Ray: an address, or local.")] = None,
    json: Json = False,
) -> None:
    """Merge and score a suite with every method of a table, in every order; continue where it stopped.

    Finished cells are kept in OUT/cells: the same command computes only what is missing.
    """
    from mingle.benchmark import TABLES, choose_executor, parse_orders, run_table, select

    if table is None:
        titles = {name: TABLES.get(name).title for name in TABLES.names()}
        show(titles, "\n".join(f"{name:<8}  {title}" for name, title in titles.items()), as_json=json)
        return
    chosen = TABLES.get(table)
    contenders = select(chosen.contenders, row or (), preset or ())
    with progress_bar() as progress:
        results = run_table(
            chosen,
            suite,
            choose_executor(workers, ray, threads),
            out,
            orders=parse_orders(orders),
            labelled_orders=labelled_orders,
            samples=samples,
            threads=threads,
            contenders=contenders,
            command=_command(table, suite, orders, samples, row, preset, labelled_orders, threads),
            progress=progress,
        )
    target = out / f"{table}-{results['suite']['name']}.json"
    publish({"table": table, **results}, target, target.with_suffix(".html"), as_json=json)


def publish(results: Mapping[str, Any], target: Path, page: Path, *, as_json: bool) -> None:
    """Writes the results and their page, and prints the table."""
    from rich.console import Console

    from mingle.benchmark import write_json
    from mingle.report import markdown, terminal, write_report

    write_json(results, target)
    write_report([results], page)
    if as_json:
        show(results, "", as_json=True)
        return
    console = Console()
    if console.is_terminal:
        console.print(terminal(results))
    else:
        typer.echo(markdown(results))
    typer.echo(f"{target}\n{page}")


def _command(
    table: str,
    suite: str,
    orders: str,
    samples: int | None,
    row: list[str] | None,
    preset: list[str] | None,
    labelled_orders: int | None,
    threads: int,
) -> str:
    """The command that computes the same numbers."""
    words = ["mingle", "bench", table, "--suite", suite, "--orders", orders]
    words += ["--samples", str(samples)] if samples else []
    words += [word for name in row or () for word in ("--row", name)]
    words += [word for name in preset or () for word in ("--preset", name)]
    words += ["--labelled-orders", str(labelled_orders)] if labelled_orders else []
    return shlex.join([*words, *(["--threads", str(threads)] if threads != 1 else [])])


COMMANDS = (Command(bench, "Example: `mingle bench table1 --suite glyph8 --orders 42-51`"),)
