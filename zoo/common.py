"""What every stage here shares: paths, the option `--cache`, timing."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mingle.suites._build.folder import cache_folder
from mingle.suites._glyph.build_folder import BuildFolder
from mingle.suites._glyph.recipe import Task, all_tasks, suite_tasks

SUITE = Path(__file__).resolve().parent.parent / "src" / "mingle" / "suites" / "glyph8"


def eight() -> list[Task]:
    """The tasks of glyph8."""
    return [all_tasks()[name] for name in suite_tasks("glyph8")]


def parser(description: str) -> argparse.ArgumentParser:
    """An argument parser with the option that every stage has: where results are kept."""
    out = argparse.ArgumentParser(description=description)
    out.add_argument(
        "--cache",
        type=lambda text: BuildFolder(Path(text)),
        default=BuildFolder(cache_folder()),
        help="folder for downloads and intermediate results",
    )
    return out


def base_images(place: BuildFolder) -> Path:
    """The base's own training images."""
    return place.sources("base")


def base_model(place: BuildFolder) -> Path:
    """The trained base."""
    return place.model("base")


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long a stage took."""
    start = time.perf_counter()
    yield
    print(f"{what}: {time.perf_counter() - start:.1f} s", flush=True)
