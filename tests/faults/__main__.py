"""``python -m tests.faults --all``: every fault at every point of every change, counted."""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from transformers.utils import logging

from tests.faults.changes import World, changes
from tests.faults.inject import FAULTS, inject, places, points_of


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--all", action="store_true", help="every point (otherwise --sample of each)")
    parser.add_argument("--sample", type=int, default=3, help="faults of each kind for every change")
    parser.add_argument("--change", help="only changes whose name begins so")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    rng, struck, failures = random.Random(chosen.seed), Counter(), []
    with tempfile.TemporaryDirectory(prefix="mingle-faults-") as temporary:
        root = Path(temporary)
        for name, change in changes(World(root)).items():
            if not name.startswith(chosen.change or ""):
                continue
            started = time.perf_counter()
            points = points_of(change, root / "points")
            for kind in FAULTS:
                numbers = places(kind, points)
                if not chosen.all:
                    numbers = sorted(rng.sample(numbers, min(chosen.sample, len(numbers))))
                for at in numbers:
                    try:
                        struck[name] += inject(change, kind, at, root / "fault")
                    except Exception as error:
                        struck[name] += 1
                        failures.append(f"{name}: {kind} at {at} {points[at - 1]}: {error!r}")
                        print(failures[-1], flush=True)
            (root / "points").rename(root / f"points-{len(struck)}")
            seconds = time.perf_counter() - started
            print(f"{name:<24} {len(points):>4} points {struck[name]:>5} faults {seconds:6.0f} s", flush=True)
    print(f"{struck.total()} faults injected, {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
