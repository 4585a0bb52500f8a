"""What the method costs, against `plain.py` and against the base model alone.

    python benchmarks/cost.py            # every row
    python benchmarks/cost.py --quick    # one repetition, fewer numbers of tasks, two of the twelve blocks
    python benchmarks/cost.py --only step memory --repetitions 5 --wall

ViT-B/32 shapes, random weights, rank 64, CPU, two threads unless --threads says otherwise. Each row is a
ratio of medians, its sides measured in turn in one process: processor time of all threads, which a busy
machine hardly changes, or with --wall the clock. Peak memory comes from one new process for each side. Where
both sides compute the same numbers the row says how far they are apart.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import plain
import torch
from measure import Settings, in_turn, memory_of, options, settings
from random_models import (
    BATCH,
    BLOCK,
    RANK,
    basis,
    delta,
    draw,
    experts,
    layer_inputs,
    logits,
    our_tower,
    plain_tower,
    tower,
)
from torch import Tensor, nn

from mingle.adaptation import GateGroup, adapt, soft_cross_entropy
from mingle.layers import LowRankExpert, Placement, build_expert
from mingle.subspace import SecondMoment, extend_basis

Factors = list[tuple[Tensor, Tensor]]
"""(B, A) of every expert."""


class Row(NamedTuple):
    """One line of the table."""

    what: str
    ratio: float
    wanted: str
    note: str = ""


# --- expert construction


def construction(given: Settings) -> Iterator[Row]:
    """The experts of one block for the T-th task."""
    deltas = {name: delta(99, shape) for name, shape in BLOCK.items()}
    wanted = {1: "2.5", 4: "6, aim 10", 8: "3.5", 20: "2"}
    for count in (1, 4) if given.quick else wanted:
        earlier = {name: experts(shape, count - 1) for name, shape in BLOCK.items()}
        apart = max(_experts_apart(deltas[name], earlier[name]) for name in ("q", "fc1", "fc2"))
        made = {"plain": plain.expert, "ours": our_expert}
        took = in_turn(
            {side: partial(each_linear, make, deltas, earlier) for side, make in made.items()}, given
        )
        note = f"{took['ours']:.2f} s a block; apart {apart:.0e}"
        yield Row(f"construction, T = {count}", took["plain"] / took["ours"], wanted[count], note)


def our_expert(
    delta: Tensor, earlier: Factors, rank: int, effective_rank: int | None = None
) -> tuple[Tensor, Tensor, int]:
    """What `plain.expert` returns."""
    wrapped = [LowRankExpert(A, B) for B, A in earlier]
    found, energy = build_expert(delta, wrapped, rank=rank, projection="block", effective_rank=effective_rank)
    return found.B, found.A, energy.effective_rank


def each_linear(
    make: Callable[..., object], deltas: Mapping[str, Tensor], earlier: Mapping[str, Factors]
) -> None:
    """The experts of one block."""
    for name in BLOCK:
        make(deltas[name], earlier[name], RANK)


def _experts_apart(delta: Tensor, earlier: Factors) -> float:
    """Relative difference of the two products at the effective rank of the plain one."""
    B, A, a = plain.expert(delta, earlier, RANK)
    left, right, _ = our_expert(delta, earlier, RANK, a if earlier else None)
    return float((left @ right - B @ A).norm() / (B @ A).norm())


# --- adaptation step


def plain_step(layers: Mapping[str, plain.PlainMixture], model: nn.Module) -> Callable[[], float]:
    """One step of `plain.py` on one batch."""
    pixels, tasks = draw(6, BATCH, 3, 224, 224), len(next(iter(layers.values())).w)
    for layer in layers.values():
        layer.w[-1], layer.c[-1] = layer.w[-1].requires_grad_(), layer.c[-1].requires_grad_()
    bases = {name: basis(layer.weight.shape[1], tasks) for name, layer in layers.items()}
    training = plain.Distillation(
        layers, bases, logits(model), logits(tower(len(layers) // len(BLOCK))), 1e-4
    )
    return lambda: training.step(pixels)


def our_step(model: nn.Module, groups: list[GateGroup]) -> Callable[[], float]:
    """One step of the library on the same batch; the teacher has been asked before."""
    pixels, student = draw(6, BATCH, 3, 224, 224), logits(model)
    with torch.no_grad():
        target = logits(tower(len(groups) // 4))(pixels)

    def loss(index: Tensor) -> Tensor:
        return soft_cross_entropy(student(pixels[index]), target[index], 2.0)

    batch = torch.arange(BATCH)
    return lambda: adapt(groups, loss, [batch], lr=1e-4, acts_on="gradient")[0]


def floor_step(blocks: int) -> Callable[[], object]:
    """Forward and backward to the input of the base model's first block."""
    model, pixels = tower(blocks), draw(6, BATCH, 3, 224, 224)
    embeddings = model.get_submodule("vision_model.embeddings")
    embeddings.register_forward_hook(lambda *found: found[-1].requires_grad_())
    student = logits(model)
    return lambda: student(pixels).logsumexp(-1).mean().backward()


def step(given: Settings) -> Iterator[Row]:
    """A step in exact float32 with gates averaged over the batch, as the released code has it; others too."""
    wanted = {1: "1.9", 8: "1.4", 20: "2.5"}
    for count in (8,) if given.quick else wanted:
        theirs, layers = plain_tower(count, "batch", given.blocks)
        half = Placement(torch.bfloat16)
        sides = {
            "plain": plain_step(layers, theirs),
            "ours": our_step(*our_tower(layers, "batch", trainable=True)),
            "per sample": our_step(*our_tower(layers, "sample", trainable=True)),
            "bfloat16": our_step(*our_tower(layers, "sample", half, trainable=True)),
            "floor": floor_step(given.blocks),
        }
        apart = abs(float(sides["plain"]()) / float(sides["ours"]()) - 1)  # type: ignore[arg-type]
        took = in_turn(sides, given)
        floor = f"{took['ours'] / took['floor']:.2f} × the floor"
        name = f"step, T = {count}"
        yield Row(name, took["plain"] / took["ours"], wanted[count], f"{floor}; losses apart {apart:.0e}")
        floor = f"{took['per sample'] / took['floor']:.2f} × the floor"
        yield Row(f"{name}, gates per sample (the default)", took["plain"] / took["per sample"], "–", floor)
        aim = "2.2, aim 3" if count == 8 else "–"
        yield Row(f"{name}, bfloat16 trunk, per sample", took["plain"] / took["bfloat16"], aim)


# --- subspace


def subspaces(given: Settings) -> Iterator[Row]:
    """Three directions of every input of one block, 10,000 tokens, the forward pass not counted."""
    readers = {"q, k, v": 3, "out": 1, "fc1": 1, "fc2": 1}
    seen = {name: layer_inputs(10_000, 3072 if name == "fc2" else 768) for name in readers}
    old = {name: basis(parts[0].shape[1], 8) for name, parts in seen.items()}

    def find(of: Callable[..., Tensor], every: Iterable[str]) -> list[Tensor]:
        return [of(seen[name], old[name]) for name in every]

    theirs, mine = plain.subspace(seen["out"], old["out"])[:, -3:], our_subspace(seen["out"], old["out"])
    apart = float((mine - theirs @ (theirs.mT @ mine)).norm())
    asked = [name for name, count in readers.items() for _ in range(count)]
    sides = {"plain": partial(find, plain.subspace, asked), "ours": partial(find, our_subspace, readers)}
    took = in_turn(sides, given)
    note = f"{took['ours']:.2f} s a block; apart {apart:.0e}"
    yield Row("subspace", took["plain"] / took["ours"], "3.5, aim 7", note)


def our_subspace(features: Sequence[Tensor], protected: Tensor) -> Tensor:
    """The columns that the features add."""
    moment = SecondMoment(protected.shape[0], augmented=False, dtype=torch.float32)
    for batch in features:
        moment.add(batch)
    return extend_basis(protected, moment.top_directions(3))


# --- inference


@torch.no_grad()
def inference(given: Settings) -> Iterator[Row]:
    """Per sample and with gates averaged over the batch, T = 8."""
    theirs, layers = plain_tower(8, "sample", given.blocks)
    models = {
        "ours": our_tower(layers, "sample")[0],
        "strongest": our_tower(layers, "sample", Placement(strongest=2))[0],
        "batch": our_tower(layers, "batch")[0],
        "plain": theirs,
        "base": tower(given.blocks),
    }
    for count in (16,) if given.quick else (1, 16, 64):
        pixels = draw(8, count, 3, 224, 224)
        expected = theirs(pixels).image_embeds
        apart = float((models["ours"](pixels).image_embeds - expected).norm() / expected.norm())
        took = in_turn({name: partial(model, pixels) for name, model in models.items()}, given)
        base, name = took["base"], f"batch {count}"
        row = f"inference per sample, {name}"
        yield Row(f"{row}, against plain", took["plain"] / took["ours"], "8", f"apart {apart:.0e}")
        yield Row(f"{row}, against the base", base / took["ours"], "0.50")
        yield Row(f"{row}, 2 strongest, against the base", base / took["strongest"], "aim 0.80")
        aim = "0.8, aim 0.9" if count == 64 else "–"
        yield Row(f"inference, gates of the batch, {name}, against the base", base / took["batch"], aim)


# --- memory


def two_steps(side: str, blocks: int) -> None:
    """Two steps of one side, T = 8, from its random experts on."""
    theirs, layers = plain_tower(8, "batch", blocks)
    if side == "ours":
        model, groups = our_tower(layers, "batch", trainable=True)
        del theirs
        layers.clear()
        run = our_step(model, groups)
    else:
        run = plain_step(layers, theirs)
    run()
    run()


def memory(given: Settings) -> Iterator[Row]:
    """Peak of a step, T = 8, models and experts included."""
    found = {side: memory_of(two_steps, side, given.blocks) for side in ("plain", "ours")}
    note = ", ".join(f"{side} {size:.1f} GB" for side, size in found.items())
    yield Row("peak memory of a step, T = 8", found["ours"] / found["plain"], "≤ 0.5, aim 0.4", note)


PARTS: dict[str, Callable[[Settings], Iterator[Row]]] = {
    "construction": construction,
    "step": step,
    "subspace": subspaces,
    "inference": inference,
    "memory": memory,
}


def main() -> None:
    """Prints the table, a row as soon as it is measured."""
    parser = options(__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    given = parser.parse_args()
    chosen = settings(given)
    if given.quick:
        chosen = chosen._replace(repetitions=1, blocks=2, quick=True)
    print(f"{'what':<62} {'ratio':>6}  {'at least':<14} note")
    for name in given.only:
        for row in PARTS[name](chosen):
            print(f"{row.what:<62} {row.ratio:>6.2f}  {row.wanted:<14} {row.note}", flush=True)


if __name__ == "__main__":
    main()
