"""Commands that show what the method does: the demo, and a report from stored results."""

from pathlib import Path
from typing import Annotated

import typer

from mingle.cli.console import Command, Json, progress_bar, show


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the runs, results.json and report.html.")] = Path(
        "demo"
    ),
    suite: Annotated[str, typer.Option(help="Suite to merge.")] = "glyph8",
    samples: Annotated[int, typer.Option(min=1, help="Test samples scored per task.")] = 150,
    seed: Annotated[int, typer.Option(help="Every random draw follows from it.")] = 42,
    json: Json = False,
) -> None:
    """Merge eight shipped checkpoints with several methods, score every step, write a report."""
    from rich.console import Console

    from mingle.benchmark import DEMO, compare, write_results
    from mingle.report import markdown, terminal, write_report
    from mingle.suites import open_suite

    chosen = open_suite(suite)
    out.mkdir(parents=True, exist_ok=True)
    _remove_runs(out / "runs")
    with progress_bar() as progress:
        results = compare(
            chosen,
            DEMO,
            out / "runs",
            limit=samples,
            seed=seed,
            command=_command(suite, samples, seed),
            progress=progress,
        )
    write_results(results, out / "results.json")
    write_report(results, out / "report.html")
    if json:
        show(results, markdown(results), as_json=True)
        return
    Console().print(terminal(results))
    typer.echo(f"{out / 'report.html'}")


def report(
    results: Annotated[Path, typer.Argument(help="results.json of a demo.")],
    out: Annotated[Path | None, typer.Option(help="HTML file  [default: beside the results].")] = None,
) -> None:
    """Write the HTML report of stored results and print their table."""
    from mingle.benchmark import read_results
    from mingle.report import markdown, write_report

    stored = read_results(results)
    target = out or results.with_suffix(".html")
    write_report(stored, target)
    typer.echo(markdown(stored))
    typer.echo(f"\n{target}")


def _remove_runs(folder: Path) -> None:
    """Makes room for a new demo; only what an earlier demo left is removed."""
    import shutil

    from mingle.errors import ConfigError

    for path in folder.iterdir() if folder.exists() else ():
        if not (path / "mingle.json").exists():
            raise ConfigError(f"{path}: not a run of an earlier demo; choose another folder with --out")
        shutil.rmtree(path)


def _command(suite: str, samples: int, seed: int) -> str:
    return f"mingle demo --suite {suite} --samples {samples} --seed {seed}"


COMMANDS = (
    Command(demo, "Example: `mingle demo --out demo`"),
    Command(report, "Example: `mingle report demo/results.json`"),
)
