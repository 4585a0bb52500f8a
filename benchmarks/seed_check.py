"""How often `add` warns of seeds that are right, and of seeds of which some or all are wrong.

    python benchmarks/seed_check.py glyph8 dino8 --keep seen

Every checkpoint of a suite is asked about the seeds of every task (48 of each), once; --keep FOLDER finds
that again. Printed for 32 and 48 seeds a time:

lowest, expected: information (see `seed_looks`), the lowest on a task's own seeds and what is expected
right, 10% …: share of cases with a warning: own seeds (50 draws a task; all 48 are the same ones), and seeds
    of which a part is of another task (10 draws for each pair)
own limit: what the best limit for this suite, on one measure alone, could find where all seeds are wrong
named: 24 seeds that are an earlier task's get its name; another named: right ones get an earlier task's
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mingle.adaptation import router_statistics
from mingle.backbones import BACKBONES
from mingle.methods import Base, State, Step
from mingle.methods._mingle_analytic import _read
from mingle.methods._mingle_options import MingleOptions
from mingle.methods._mingle_resolve import resolve
from mingle.methods._seed_check import ASKED, FEWEST, nearest_task, seed_looks
from mingle.suites import Suite, open_suite, pick, task_head

SEEDS, SIZES, SHARES = ASKED, (FEWEST, ASKED), (0.1, 0.5, 1.0)


class Seen(NamedTuple):
    """Logits by checkpoint and task of the seeds; what a router reads of the seeds, by task."""

    logits: Mapping[tuple[str, str], Tensor]
    read: Mapping[str, Tensor]


def look(suite: Suite) -> Seen:
    """Asks every checkpoint about the seeds of every task."""
    backbone = BACKBONES.get(suite.backbone)()
    base = Base(backbone, backbone.open(suite.base))
    options = resolve(MingleOptions(gates="analytic"), base)
    batches, read = {}, {}
    for task in suite.tasks:
        pool = suite.seeds(task)
        order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0))
        batches[task] = backbone.prepare(pick(pool, order[:SEEDS].tolist()), base.checkpoint)
        read[task] = next(iter(_read(State(base), options, {}, batches[task]).values())).flatten(0, 1)
    logits = {}
    for task in suite.tasks:
        model = backbone.build(backbone.open(suite.checkpoint(task), base.checkpoint), base.checkpoint)
        head = task_head(suite, task, backbone, base.checkpoint)
        if head is None:
            raise SystemExit(f"{suite.name}: task {task!r} has no head")
        with torch.no_grad():
            found = {(task, other): backbone.class_logits(model, batches[other], head) for other in batches}
        logits |= found
    return Seen(logits, read)


def kept(suite: Suite, folder: Path | None) -> Seen:
    """What was seen, from the folder where it is there."""
    path = None if folder is None else folder / f"{suite.name}.pt"
    if path is not None and path.exists():
        return Seen(**torch.load(path, weights_only=True))
    seen = look(suite)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(seen._asdict(), path)
    return seen


def rates(seen: Seen, tasks: Sequence[str], size: int) -> dict[str, Any]:
    """Lowest information on right seeds, what is expected, and how often there is a warning."""
    generator = torch.Generator().manual_seed(size)

    def some(logits: Tensor, count: int) -> Tensor:
        return logits[torch.randperm(len(logits), generator=generator)[:count]]

    own = [seed_looks(some(seen.logits[t, t], size)) for t in tasks for _ in range(50)]
    found: dict[str, Any] = {
        "lowest": min(looks.information for looks in own),
        "expected": own[0].expected,
        "right": sum(looks.doubtful for looks in own) / len(own),
    }
    pairs = [(t, other) for t in tasks for other in tasks if t != other]
    for share in SHARES:
        wrong = round(share * size)
        looks = [
            seed_looks(torch.cat([some(seen.logits[t, t], size - wrong), some(seen.logits[t, o], wrong)]))
            for t, o in pairs
            for _ in range(10)
        ]
        found[f"{share:.0%} wrong"] = sum(look.doubtful for look in looks) / len(looks)
    # Of seeds that are all wrong, as many as a limit of this suite's own could find at no false alarm.
    least, most = min(look.information for look in own), max(look.entropy for look in own)
    found["own limit, information"] = sum(look.information < least for look in looks) / len(looks)
    found["own limit, entropy"] = sum(look.entropy > most for look in looks) / len(looks)
    return found


def named(seen: Seen, tasks: Sequence[str]) -> dict[str, float]:
    """How often the task that seeds came from is named, and how often another is for right seeds.

    On half of what was seen, so that what was merged and what comes now are other samples.
    """
    half = SEEDS // 2

    def step(task: str, part: slice) -> Step:
        read = seen.read[task][:SEEDS][part]
        factor, mean = router_statistics(read)
        return Step(
            task, {"router": {"x.factor": factor, "x.mean": mean}}, report={"seeds": {"used": len(read)}}
        )

    right, wrong = [], []
    for place in range(1, len(tasks)):
        state = State(None, tuple(step(task, slice(half)) for task in tasks[:place]))  # type: ignore[arg-type]
        own = step(tasks[place], slice(half, None))
        right.append(nearest_task(state, own.tensors["router"], half) is not None)
        for other in tasks[:place]:
            foreign = step(other, slice(half, None))
            wrong.append(nearest_task(state, foreign.tensors["router"], half) == other)
    return {"named": sum(wrong) / len(wrong), "another named": sum(right) / len(right)}


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suites", nargs="+")
    parser.add_argument("--keep", type=Path, help="folder for what was seen")
    given = parser.parse_args()
    for source in given.suites:
        suite = open_suite(source)
        seen = kept(suite, given.keep)
        for size in SIZES:
            cells = {"suite": suite.name, "seeds": size, **rates(seen, suite.tasks, size)}
            cells |= named(seen, suite.tasks)
            values = (f"{v:.3f}" if isinstance(v, float) else v for v in cells.values())
            if size == SIZES[0]:
                print(" | ".join(cells))
            print(" | ".join(map(str, values)), flush=True)


if __name__ == "__main__":
    main()
