"""The demo: what the method does, on one page."""

import os
from pathlib import Path
from typing import Annotated

import typer

from mingle.cli.bench import publish
from mingle.cli.console import Command, Json, progress_bar


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
    from mingle.benchmark import TABLES, InProcess, run_table

    for leftover in (out / "runs", out / "cells"):
        _clear(leftover)
    with progress_bar() as progress:
        results = run_table(
            TABLES.get("demo"),
            suite,
            InProcess(out / "runs", progress),
            out,
            orders=(seed,),
            samples=samples,
            threads=os.cpu_count() or 1,
            command=f"mingle demo --suite {suite} --samples {samples} --seed {seed}",
        )
    publish({"table": "demo", **results}, out / "results.json", out / "report.html", as_json=json)


def _clear(folder: Path) -> None:
    """Makes room for a new demo; only what an earlier demo left is removed."""
    import shutil

    from mingle.errors import ConfigError

    for path in folder.iterdir() if folder.exists() else ():
        if path.suffix not in (".json", ".tmp") and not (path / "mingle.json").exists():
            raise ConfigError(f"{path}: not of an earlier demo; choose another folder with --out")
        path.unlink() if path.is_file() else shutil.rmtree(path)


COMMANDS = (Command(demo, "Example: `mingle demo --out demo`"),)
