"""Paths, the task list and small helpers that every stage shares."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

ZOO = Path(__file__).resolve().parent
SUITE = ZOO.parent / "src" / "mingle" / "suites" / "glyph8"
SOURCE_SIZE = 48  # side of a rendered source image; every augmentation samples a 32 x 32 picture out of it
IMAGE_SIZE = 32
SEED = 20240
Bag = dict[str, np.ndarray]


def tasks_file() -> dict[str, Any]:
    """The whole content of tasks.yaml."""
    return yaml.safe_load((ZOO / "tasks.yaml").read_text(encoding="utf-8"))


def parser(description: str) -> argparse.ArgumentParser:
    """An argument parser with the option that every stage has: where results are kept."""
    out = argparse.ArgumentParser(description=description)
    default = os.environ.get("MINGLE_ZOO_CACHE", str(Path.home() / ".cache" / "mingle-zoo"))
    out.add_argument(
        "--cache", type=Path, default=Path(default), help="folder for downloads and intermediate results"
    )
    return out


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long a stage took."""
    start = time.perf_counter()
    yield
    print(f"{what}: {time.perf_counter() - start:.1f} s", flush=True)


def generator(*key: int) -> torch.Generator:
    """A random generator that depends on the project's seed and on `key` alone."""
    seed = int(np.random.SeedSequence([SEED, *key]).generate_state(1)[0])
    return torch.Generator().manual_seed(seed)


def save_bag(path: Path, bag: Bag) -> None:
    """Write arrays so that a kill in the middle leaves no half-written file under the final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **bag)
    partial.rename(path)


def load_bag(path: Path) -> Bag:
    """Read what `save_bag` wrote."""
    with np.load(path, allow_pickle=False) as data:
        return {name: data[name] for name in data.files}
