"""``python -m tests.fuzz --cases 100000``: reads damaged files of every kind, and says what went wrong."""

import argparse
import logging
import resource
import sys
import tempfile
from pathlib import Path

from .campaign import Campaign, timed
from .models import model_targets
from .targets import TARGETS

GIGABYTES = 6
"""Address space beyond what the process has when the valid files are read: more is refused by the system."""


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="targets whose name contains this")
    parser.add_argument("--keep", type=Path, help="folder for one file of every kind of finding")
    chosen = parser.parse_args()
    logging.disable(logging.CRITICAL)
    targets = {n: t for n, t in (TARGETS | model_targets()).items() if (chosen.only or "") in n}
    with tempfile.TemporaryDirectory(prefix="mingle-fuzz-") as root:
        campaign = Campaign(targets, Path(root), chosen.seed)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + GIGABYTES * 2**30,) * 2)
        kinds = timed(campaign, range(chosen.first, chosen.first + chosen.cases))
    for (target, *_), [first, *_] in kinds.items():
        if chosen.keep:
            folder = chosen.keep / target.replace(" ", "-") / f"{chosen.seed}-{first.number}"
            (folder / first.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / first.file).write_bytes(first.data)
    sys.exit(1 if kinds else 0)


main()
