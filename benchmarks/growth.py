"""How cost grows with the number T of merged tasks.

    python benchmarks/growth.py                                  # T = 1, 2, 4, … 64
    python benchmarks/growth.py --blocks 1 --tasks 1 2 4 8 16 --json growth.json

ViT-B/32 shapes, random weights, rank 64, gates per sample (the default) unless it says otherwise. A run grows
step by step in a temporary folder (about 43 MB a task with all blocks). Printed are, for each T: seconds of
processor time, or with --wall of the clock – of building the T-th task's experts in one block, of one
adaptation step on 16 images, of predicting 16 images, and of opening the run and building its model, files in
the page cache – then the size on disk, and the peak memory of opening, building and predicting in a process
of its own. In brackets is the ratio to the smallest T. The last line fits p of ``cost ~ T^p`` (least squares
on logarithms) over the larger half of T.
"""

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import plain
import torch
from cost import each_linear, our_expert, our_step
from measure import GB, Settings, in_turn, memory_of, options, settings
from random_models import BATCH, BLOCK, delta, draw, experts, our_tower, plain_tower, tower

from mingle.evaluation.final import gate_reduction
from mingle.methods import Step
from mingle.provenance import machine, versions
from mingle.state import MergeRun, RunFolder
from mingle.state.stored_step import append_step

Layers = Mapping[str, plain.PlainMixture]
PIXELS = (9, BATCH, 3, 224, 224)


def lengthen(run: MergeRun, layers: Layers) -> None:
    """Stores the random experts and gates that the run still lacks, each task as a step."""
    folder, known = RunFolder.open(run.path), len(run.tasks)
    groups = run.backbone.groups(run.base.model(), "full")
    for task in range(known, len(next(iter(layers.values())).w)):
        factors, gates = {}, {}
        for name, layer in layers.items():
            factors[f"{name}.B"], factors[f"{name}.A"] = layer.experts[task]
            gates[f"{name}.weight"], gates[f"{name}.bias"] = layer.w[task], layer.c[task]
        widths = {group.name: layers[group.name].weight.shape[1] for group in groups}
        subspace = {name: draw(task, width + 1, 3) for name, width in widths.items()}
        tensors = {"experts": factors, "gates": gates, "subspace": subspace}
        folder = append_step(folder, Step(f"task{task}", tensors), run.base.checkpoint, time.perf_counter())


def use(path: Path) -> None:
    """What a process does that predicts with a run."""
    model = MergeRun.open(path).model()
    with torch.no_grad():
        model(draw(*PIXELS))


def timed(layers: Layers, path: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is timed, one after the other: only one of the models is in memory at a time."""
    tasks = len(next(iter(layers.values())).w)
    earlier = {name: experts(shape, tasks - 1) for name, shape in BLOCK.items()}
    deltas = {name: delta(99, shape) for name, shape in BLOCK.items()}
    yield "experts of a block", partial(each_linear, our_expert, deltas, earlier)
    yield "adaptation step", our_step(*our_tower(layers, "sample", trainable=True))
    model, pixels = our_tower(layers, "sample")[0].requires_grad_(False), draw(*PIXELS)
    yield "per sample", partial(model, pixels)
    with gate_reduction(model, "batch"):
        yield "gates of the batch", partial(model, pixels)
    del model
    yield "open and build", lambda: MergeRun.open(path).model()


def costs(tasks: int, path: Path, given: Settings) -> dict[str, float]:
    """Every cost at T = ``tasks``."""
    layers = plain_tower(tasks, "sample", given.blocks)[1]
    lengthen(MergeRun.open(path), layers)
    found = {}
    for name, side in timed(layers, path):
        found |= in_turn({name: side}, given)
        del side
    layers.clear()
    found["GB on disk"] = MergeRun.open(path).size_bytes() / GB
    found["GB of memory"] = memory_of(use, path)
    return found


def exponent(tasks: Sequence[int], values: Sequence[float]) -> float:
    """The slope p of the line ``log cost = p log T + c``, by least squares over the larger half of T."""
    half = len(tasks) // 2
    logs = ([math.log(value) for value in axis[half:]] for axis in (tasks, values))
    return statistics.linear_regression(*logs).slope


def main() -> None:
    """Prints a line for each T as soon as it is measured."""
    parser = options(__doc__)
    parser.add_argument("--tasks", type=int, nargs="+", default=[2**n for n in range(7)])
    parser.add_argument("--json", type=Path, help="where the numbers go too")
    parser.add_argument("--folder", type=Path, help="where the temporary run lies")
    given = parser.parse_args()
    chosen, tasks = settings(given), sorted(given.tasks)
    measured: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        place = Path(folder)
        tower(given.blocks).save_pretrained(place / "base")  # type: ignore[operator]
        MergeRun.create(place / "run", place / "base", preset="learned")
        for count in tasks:
            measured[count] = found = costs(count, place / "run", chosen)
            if count == tasks[0]:
                print(f"{'T':>3}  " + "  ".join(f"{name:<18}" for name in found))
            first = measured[tasks[0]]
            cells = (f"{value:<7.3g} ({value / first[name]:.2f})" for name, value in found.items())
            print(f"{count:>3}  " + "  ".join(f"{cell:<18}" for cell in cells), flush=True)
    fits = {name: exponent(tasks, [measured[t][name] for t in tasks]) for name in measured[tasks[0]]}
    print("  p  " + "  ".join(f"{value:<18.2f}" for value in fits.values()))
    if given.json is not None:
        arguments = {name: str(value) for name, value in vars(given).items()}
        written = {"arguments": arguments, "machine": machine(), "versions": versions()}
        given.json.write_text(json.dumps({**written, "costs": measured, "exponents": fits}, indent=1))


if __name__ == "__main__":
    main()
