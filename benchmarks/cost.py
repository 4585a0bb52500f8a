"""What the method costs, against `plain.py` and against the base model alone.

    python benchmarks/cost.py            # every row, about 20 minutes on two cores
    python benchmarks/cost.py --quick    # one repetition, fewer numbers of tasks
    python benchmarks/cost.py --only step memory

ViT-B/32 shapes, random weights, rank 64, CPU, two threads. Each row is a ratio of medians, its sides measured in
turn in one process, so that a busy machine disturbs both alike; peak memory comes from one new process for each
side. Where both sides compute the same numbers the row says how far they are apart.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

import plain
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from mingle.adaptation import GateGroup, adapt, soft_cross_entropy
from mingle.backbones.clip import Clip
from mingle.layers import GateReduction, LowRankExpert, build_expert, wrap
from mingle.subspace import NullSpaceProjector, SecondMoment, extend_basis

RANK, TOKENS, BATCH, CLASSES = 64, 50, 16, 100
BLOCK = {"q": (768, 768), "k": (768, 768), "v": (768, 768), "out": (768, 768), "fc1": (3072, 768)}
BLOCK |= {"fc2": (768, 3072)}
"""The Linears of one of the twelve blocks, (d_out, d_in)."""
GB = 2**30


class Row(NamedTuple):
    """One line of the table."""

    what: str
    ratio: float
    wanted: str
    note: str = ""


def in_turn(sides: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Median seconds of every side; one run of each to warm up, then all of them in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(repetitions + 1):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            if repetition:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(found) for name, found in seconds.items()}


def draw(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def delta(seed: int, shape: tuple[int, int]) -> Tensor:
    """A random task vector of full rank whose singular values fall as a power law, as those of fine-tuning do."""
    inner = min(shape)
    scale = torch.arange(1, inner + 1) ** -0.6
    return 1e-3 * (draw(seed, shape[0], inner) * scale) @ draw(seed + 1, inner, shape[1]) / inner**0.5


def experts(shape: tuple[int, int], tasks: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """(B, A) of random experts: orthonormal B, falling singular values in A."""
    found = []
    for task in range(tasks):
        q = torch.linalg.qr(draw(seed + 2 * task, shape[0], RANK)).Q
        scale = torch.arange(1, RANK + 1)[:, None] ** -0.6
        found.append((q, 0.02 * scale * draw(seed + 2 * task + 1, RANK, shape[1]) / shape[1] ** 0.5))
    return found


# --- expert construction


def construction(tasks: Sequence[int], repetitions: int) -> Iterator[Row]:
    """The experts of one block for the T-th task."""
    for count in tasks:
        deltas = {name: delta(99, shape) for name, shape in BLOCK.items()}
        earlier = {name: experts(shape, count - 1) for name, shape in BLOCK.items()}
        wrapped = {name: [LowRankExpert(A, B) for B, A in pairs] for name, pairs in earlier.items()}
        worst = 0.0
        for name in BLOCK:
            B, A, a = plain.expert(deltas[name], earlier[name], RANK)
            given = a if count > 1 else None
            ours, _ = build_expert(
                deltas[name], wrapped[name], rank=RANK, projection="block", effective_rank=given
            )
            worst = max(worst, float((ours.B @ ours.A - B @ A).norm() / (B @ A).norm()))
        seconds = in_turn(
            {
                "plain": lambda: [plain.expert(deltas[n], earlier[n], RANK) for n in BLOCK],
                "ours": lambda: [
                    build_expert(deltas[n], wrapped[n], rank=RANK, projection="block") for n in BLOCK
                ],
            },
            repetitions,
        )
        wanted = {1: "2.5", 4: "6, aim 10", 8: "3.5", 20: "2"}.get(count, "–")
        yield Row(
            f"expert construction, T = {count}",
            seconds["plain"] / seconds["ours"],
            wanted,
            f"{seconds['ours']:.2f} s a block; apart {worst:.0e}",
        )


# --- the model


def tower() -> nn.Module:
    """A random ViT-B/32, the same every time."""
    torch.manual_seed(0)
    model: nn.Module = CLIPVisionModelWithProjection(CLIPVisionConfig())
    return model.eval().requires_grad_(False)


def plain_tower(tasks: int, reduction: str) -> tuple[nn.Module, dict[str, plain.PlainMixture]]:
    """With the layers of `plain.py`."""
    model, layers = tower(), dict[str, plain.PlainMixture]()
    for number, name in enumerate(n for group in Clip().groups(model, "full") for n in group.linears):
        linear = model.get_submodule(name)
        weight, bias = linear.get_parameter("weight"), linear.get_parameter("bias")
        layer = layers[name] = plain.PlainMixture(weight, bias, reduction)
        layer.experts = experts((weight.shape[0], weight.shape[1]), tasks, 1000 * number)
        for task in range(tasks):
            row = 0.01 * draw(1000 * number + 500 + task, weight.shape[1])
            layer.w.append(row)
            layer.c.append(torch.tensor(0.1))
        model.set_submodule(name, layer)
    return model, layers


def our_tower(
    layers: Mapping[str, plain.PlainMixture], reduction: GateReduction, *, trainable: bool = False
) -> tuple[nn.Module, list[GateGroup]]:
    """The same model with the layers of the library, and its gates by group."""
    model = tower()
    groups = Clip().groups(model, "full")
    ours = wrap(model, groups, reduction)
    for name, layer in ours.items():
        other = layers[name]
        layer.extend(LowRankExpert(A, B) for B, A in other.experts)
        for task, (w, c) in enumerate(zip(other.w, other.c, strict=True)):
            newest = trainable and task == len(other.w) - 1
            layer.gate.append(w.detach(), c.detach(), trainable=newest)
    return model, [
        GateGroup(
            [ours[n].gate for n in group.linears],
            NullSpaceProjector(basis(ours[group.name].A.shape[1], len(other.w))),
            augmented=False,
        )
        for group in groups
    ]


def basis(width: int, tasks: int) -> Tensor:
    """What the earlier tasks protect, 3 columns each."""
    return torch.linalg.qr(draw(7, width, 3 * (tasks - 1))).Q


def logits(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Pixels to the logits of a random head."""
    head = torch.nn.functional.normalize(draw(5, CLASSES, 512), dim=-1)

    def run(pixels: Tensor) -> Tensor:
        features: Tensor = model(pixels).image_embeds
        return 100 * torch.nn.functional.normalize(features, dim=-1) @ head.mT

    return run


# --- adaptation step


def plain_step(layers: Mapping[str, plain.PlainMixture], model: nn.Module) -> Callable[[], float]:
    """One step of `plain.py` on one batch."""
    pixels, tasks = draw(6, BATCH, 3, 224, 224), len(next(iter(layers.values())).w)
    for layer in layers.values():
        layer.w[-1], layer.c[-1] = layer.w[-1].requires_grad_(), layer.c[-1].requires_grad_()
    bases = {name: basis(layer.weight.shape[1], tasks) for name, layer in layers.items()}
    training = plain.Distillation(layers, bases, logits(model), logits(tower()), 1e-4)
    return lambda: training.step(pixels)


def our_step(groups: list[GateGroup], model: nn.Module) -> Callable[[], float]:
    """One step of the library on the same batch; the teacher has been asked before."""
    pixels, student = draw(6, BATCH, 3, 224, 224), logits(model)
    with torch.no_grad():
        target = logits(tower())(pixels)

    def loss(index: Tensor) -> Tensor:
        return soft_cross_entropy(student(pixels[index]), target[index], 2.0)

    batch = torch.arange(BATCH)
    return lambda: adapt(groups, loss, [batch], lr=1e-4, acts_on="gradient")[0]


def floor_step() -> Callable[[], object]:
    """Forward and backward to the input of the base model."""
    model = logits(tower())
    pixels = draw(6, BATCH, 3, 224, 224).requires_grad_()
    return lambda: torch.autograd.grad(model(pixels).logsumexp(-1).mean(), pixels)


def step(tasks: Sequence[int], repetitions: int) -> Iterator[Row]:
    """A step in exact float32 with the gates of the released code, averaged over the batch."""
    for count in tasks:
        theirs, layers = plain_tower(count, "batch")
        batched, rows = our_tower(layers, "batch", trainable=True)
        sampled, own_rows = our_tower(layers, "sample", trainable=True)
        sides = {
            "plain": plain_step(layers, theirs),
            "ours": our_step(rows, batched),
            "per sample": our_step(own_rows, sampled),
            "floor": floor_step(),
        }
        apart = abs(sides["plain"]() / sides["ours"]() - 1)
        seconds = in_turn(sides, repetitions)
        yield Row(
            f"adaptation step, T = {count}",
            seconds["plain"] / seconds["ours"],
            {1: "1.9", 8: "1.4", 20: "2.5"}.get(count, "–"),
            f"{seconds['ours'] / seconds['floor']:.2f} × the floor; gates per sample "
            f"{seconds['plain'] / seconds['per sample']:.2f}; losses apart {apart:.0e}",
        )


# --- subspace


def subspaces(tokens: Sequence[int], repetitions: int) -> Iterator[Row]:
    """Three directions of every input of one block, the forward pass not counted."""
    inputs = {"qkv": (768, 3), "out": (768, 1), "fc1": (768, 1), "fc2": (3072, 1)}
    for count in tokens:
        old = {name: basis(width, 8) for name, (width, _) in inputs.items()}
        seen = {name: layer_inputs(count, width) for name, (width, _) in inputs.items()}

        def ours(seen: Mapping[str, list[Tensor]] = seen, old: Mapping[str, Tensor] = old) -> list[Tensor]:
            return [our_subspace(seen[n], old[n]) for n in inputs]

        def theirs(seen: Mapping[str, list[Tensor]] = seen, old: Mapping[str, Tensor] = old) -> list[Tensor]:
            return [
                plain.subspace(seen[n], old[n]) for n, (_, readers) in inputs.items() for _ in range(readers)
            ]

        pairs = [(our_subspace(seen[n], old[n]), plain.subspace(seen[n], old[n])) for n in inputs]
        apart = max(float((u - v[:, -3:] @ (v[:, -3:].mT @ u)).norm()) for u, v in pairs)
        seconds = in_turn({"plain": theirs, "ours": ours}, repetitions)
        yield Row(
            f"subspace, {count} tokens",
            seconds["plain"] / seconds["ours"],
            "3.5, aim 7",
            f"{seconds['ours']:.2f} s a block; apart {apart:.0e}",
        )


def layer_inputs(tokens: int, width: int) -> list[Tensor]:
    """Batches of tokens with a mean and a few strong directions, as a layer's inputs have."""
    strong = draw(11, 20, width) * torch.arange(20, 0, -1)[:, None] / 10
    rows = draw(12, tokens, width) + draw(13, tokens, 20) @ strong + draw(14, width)
    return list(rows.split(64 * TOKENS))


def our_subspace(features: Sequence[Tensor], protected: Tensor) -> Tensor:
    """The columns that the features add."""
    moment = SecondMoment(protected.shape[0], augmented=False, dtype=torch.float32)
    for batch in features:
        moment.add(batch)
    return extend_basis(protected, moment.top_directions(3))


# --- inference


@torch.no_grad()
def inference(batches: Sequence[int], repetitions: int) -> Iterator[Row]:
    """Per sample and with gates averaged over the batch, T = 8."""
    theirs, layers = plain_tower(8, "sample")
    sampled, batched = our_tower(layers, "sample")[0], our_tower(layers, "batch")[0]
    base = tower()
    for count in batches:
        pixels = draw(8, count, 3, 224, 224)
        expected = theirs(pixels).image_embeds
        apart = float((sampled(pixels).image_embeds - expected).norm() / expected.norm())
        sides = {"ours": lambda: sampled(pixels), "base": lambda: base(pixels)}  # noqa: B023
        sides |= {"plain": lambda: theirs(pixels), "batch": lambda: batched(pixels)}  # noqa: B023
        seconds = in_turn(sides, repetitions)
        ours, name = seconds["ours"], f"batch {count}"
        yield Row(
            f"inference per sample, {name}, against plain", seconds["plain"] / ours, "8", f"apart {apart:.0e}"
        )
        yield Row(f"inference per sample, {name}, against the base", seconds["base"] / ours, "0.50")
        yield Row(
            f"inference, gates of the batch, {name}, against the base",
            seconds["base"] / seconds["batch"],
            "0.8, aim 0.9 (64)",
        )


# --- memory


def peak() -> float:
    """Largest resident memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB


def memory_of(side: str, answer: Connection) -> None:
    """Answers with what two steps of one side take beyond the imports."""
    torch.set_num_threads(2)
    tower()
    before = peak()
    theirs, layers = plain_tower(8, "batch")
    run = plain_step(layers, theirs)
    if side == "ours":
        del theirs
        model, groups = our_tower(layers, "batch", trainable=True)
        layers.clear()
        run = our_step(groups, model)
    run()
    run()
    answer.send(peak() - before)


def memory(repetitions: int) -> Iterator[Row]:
    """Peak of a step, T = 8, models and experts included."""
    del repetitions
    found = {}
    for side in ("plain", "ours"):
        answer, question = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(target=memory_of, args=(side, question))
        process.start()
        found[side] = answer.recv()
        process.join()
    note = ", ".join(f"{side} {size:.1f} GB" for side, size in found.items())
    yield Row("peak memory of a step, T = 8", found["ours"] / found["plain"], "at most 0.5, aim 0.4", note)


def main() -> None:
    """Prints the table, a row as soon as it is measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    sections = ("construction", "step", "subspace", "inference", "memory")
    parser.add_argument("--only", nargs="+", choices=sections, default=sections)
    given = parser.parse_args()
    torch.set_num_threads(2)
    quick: bool = given.quick
    again = 1 if quick else 5
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "construction": lambda: construction((1, 4) if quick else (1, 4, 8, 20), again),
        "step": lambda: step((8,) if quick else (1, 8, 20), again),
        "subspace": lambda: subspaces((10_000,), again),
        "inference": lambda: inference((16,) if quick else (1, 16, 64), again),
        "memory": lambda: memory(again),
    }
    print(f"{'what':<56} {'ratio':>6}  {'wanted':<20} note")
    for name in given.only:
        for row in parts[name]():
            print(f"{row.what:<56} {row.ratio:>6.2f}  {row.wanted:<20} {row.note}", flush=True)


if __name__ == "__main__":
    main()
