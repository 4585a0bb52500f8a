"""What it gains, and changes, to use only the experts whose gate matters, against the number T of tasks.

    python benchmarks/sparse.py --wall                          # T = 1, 2, 4, … 64
    python benchmarks/sparse.py --blocks 4 --tasks 8 64 --batch 1

ViT-B/32 shapes, random weights, rank 64. Gates are in closed form as they are by default, read after a
quarter, a half and three quarters of the blocks: solved from random images, those of a task around a mean of
their own. A batch goes round the tasks. Printed for each T are the times of a forward pass as multiples of
the base model's – ``no expert``: with the router but no expert at all, ``from x``: the experts with gates
from x on – and in brackets the share of samples for which a random head of 100 classes says what it says with
all experts, and how many experts a sample uses in the mean.
"""

import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from measure import Settings, in_turn, options, settings
from random_models import draw, experts, logits, tower
from torch import Tensor, nn

from mingle.adaptation import RouterSystem, router_statistics
from mingle.backbones.clip import Clip
from mingle.layers import (
    ClosedFormGate,
    Decision,
    LowRankExpert,
    PooledInput,
    Reading,
    Selection,
    TrunkRouter,
    mixtures,
    select_experts,
    trunk_of,
    wrap,
)
from mingle.methods._mingle_options import MingleOptions
from mingle.methods._mingle_resolve import default_depths
from mingle.provenance import machine, versions

STACK, SEEDS, SPREAD = "vision_model.encoder", 8, 2.0
ROUTER = MingleOptions()
KEPT = {
    "all": Selection(),
    "no expert": Selection(threshold=2.0),
    "strongest 1": Selection(1),
    "strongest 2": Selection(2),
    "from 0.01": Selection(threshold=0.01),
    "from 0.05": Selection(threshold=0.05),
    "from 0.2": Selection(threshold=0.2),
}


class Cell(NamedTuple):
    """A forward pass as a multiple of the base's, the share of equal predictions, experts per sample."""

    times: float
    same: float
    used: float


def images(task: int, count: int, seed: int) -> Tensor:
    """Noise around the picture of a task."""
    mean = nn.functional.interpolate(draw(70_000 + task, 1, 3, 7, 7), size=224, mode="bilinear")
    return mean + SPREAD * draw(80_000 + 1000 * task + seed, count, 3, 224, 224)


def batch_of(tasks: int, size: int, seed: int) -> Tensor:
    """One image after the other, each of another task."""
    return torch.cat([images((seed * size + i) % tasks, 1, seed * size + i) for i in range(size)])


def read(blocks: int, tasks: int) -> list[Tensor]:
    """What the router reads of the seeds of every task: (n, d̃) each."""
    model, seen = tower(blocks), list[Tensor]()
    wrap(model, Clip().groups(model, "full"))
    stack = model.get_submodule(STACK)
    router = _serving(stack, None, PooledInput(), blocks)
    router.register_forward_pre_hook(lambda r, args: seen.append(r.solved.reading(args, r.pool)))
    for task in range(tasks):
        model(images(task, SEEDS, 500))
    return seen


def _serving(stack: nn.Module, weight: Tensor | None, pool: PooledInput, blocks: int) -> TrunkRouter:
    depths = default_depths(ROUTER, blocks)
    trunk = trunk_of(stack, "layers", depths[-1])
    read_of = [trunk.get_submodule(f"layers.{depth - 1}") for depth in depths]
    decision = Decision(ROUTER.router_form, ROUTER.router_temperature)
    gate = ClosedFormGate(weight, Reading(ROUTER.router_features), decision)
    router = TrunkRouter(gate, pool, trunk, read_of)
    router.serve(stack)
    return router


def merged(blocks: int, seen: list[Tensor]) -> nn.Module:
    """The tower with an expert of every task that was read, and the router of them."""
    model = tower(blocks)
    layers = wrap(model, Clip().groups(model, "full"))
    for number, layer in enumerate(layers.values()):
        shape = (layer.B.shape[0], layer.A.shape[1])
        # Of the size that fine-tuning has: a tenth of the weight.
        pairs = experts(shape, len(seen), 1000 * number)
        size = 0.1 * float(layer.linear.get_parameter("weight").norm())
        layer.extend(LowRankExpert(A * (size / A.norm()), B) for B, A in pairs)
    statistics = [router_statistics(part) for part in seen]
    weight = RouterSystem(statistics, ROUTER.router_ridge).weight().float()
    pool = next(iter(layers.values())).pool
    router = _serving(model.get_submodule(STACK), weight, pool, blocks)
    for layer in layers.values():
        layer.gate = router.gate
    return model


def predictions(model: nn.Module, batches: list[Tensor]) -> tuple[Tensor, float]:
    """Classes of all samples, and how many experts one uses in the mean."""
    layer = next(iter(mixtures(model)))[1]
    said, used = [], []
    for pixels in batches:
        said.append(logits(model)(pixels).argmax(-1))
        gates = layer.gate.of(pixels, layer.pool)
        used.append((layer.selection.kept(gates) != 0).sum(1).float().mean())
    return torch.cat(said), float(torch.stack(used).mean())


def measured(model: nn.Module, base: nn.Module, batches: list[Tensor], given: Settings) -> dict[str, Cell]:
    """Every way of selecting, on the same model: the forward passes of all ways take turns."""

    def under(selection: Selection) -> Tensor:
        return logits(select_experts(model, selection))(batches[0])

    sides = {name: partial(under, selection) for name, selection in KEPT.items()}
    took = in_turn({"base": partial(logits(base), batches[0]), **sides}, given)
    said = {name: predictions(select_experts(model, s), batches) for name, s in KEPT.items()}
    dense = said["all"][0]
    return {
        name: Cell(took[name] / took["base"], float((found == dense).float().mean()), used)
        for name, (found, used) in said.items()
    }


@torch.no_grad()
def main() -> None:
    """Prints a line for each T as soon as it is measured."""
    parser = options(__doc__)
    parser.add_argument("--tasks", type=int, nargs="+", default=[2**n for n in range(7)])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batches", type=int, default=4, help="how many of them are predicted")
    parser.add_argument("--json", type=Path, help="where the numbers go too")
    given = parser.parse_args()
    chosen, base, rows = settings(given), tower(given.blocks), {}
    seen = read(given.blocks, max(given.tasks))
    print(f"{'T':>3}  " + "  ".join(f"{name:<19}" for name in KEPT))
    for count in sorted(given.tasks):
        batches = [batch_of(count, given.batch, number) for number in range(given.batches)]
        rows[count] = measured(merged(given.blocks, seen[:count]), base, batches, chosen)
        cells = (f"{c.times:.2f} ({c.same:.0%}, {c.used:.1f})" for c in rows[count].values())
        print(f"{count:>3}  " + "  ".join(f"{cell:<19}" for cell in cells), flush=True)
    if given.json is not None:
        arguments = {name: str(value) for name, value in vars(given).items()}
        kept = {count: {name: cell._asdict() for name, cell in row.items()} for count, row in rows.items()}
        written = {"arguments": arguments, "machine": machine(), "versions": versions(), "costs": kept}
        given.json.write_text(json.dumps(written, indent=1))


if __name__ == "__main__":
    main()
