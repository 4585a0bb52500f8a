"""Adapting the gates of one step on seed samples, and protecting what the task uses.

Tensors of a step's ``gates``: ``<linear>.weight`` (d_in,), ``<linear>.bias`` (), or the rows of all tasks,
(t, d_in) and (t,), with ``old_gates="trained"``; of its ``subspace``: ``<group>`` (d, k), the columns that
the task adds to the protected basis U of the group.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mingle.adaptation import OBJECTIVES, GateGroup, adapt, draw_batches, second_moments, select_seeds
from mingle.backbones import Batch, Head, Lesson, count, split, take
from mingle.backbones.base_backbone import FORWARD_BATCH
from mingle.layers import LinearGroup, MixtureLinear, Placement
from mingle.methods._mingle_experts import Experts, assemble
from mingle.methods._mingle_options import MingleOptions, MingleReplay, ResolvedOptions
from mingle.methods._mingle_resolve import merged_groups
from mingle.methods._seed_check import SeedLooks, look_at_seeds
from mingle.methods._seed_samples import derived_generator, seed_report
from mingle.methods.base_experts import Tensors
from mingle.methods.base_method import Arrival, Base, Progress, State, require_seeds, silent
from mingle.subspace import NullSpaceProjector, extend_basis


class AdaptedGates(NamedTuple):
    """What adaptation adds to a step."""

    gates: dict[str, Tensor]
    subspace: dict[str, Tensor]
    report: dict[str, Any]
    looks: SeedLooks | None


def static_gates(experts: Experts, value: float, dtype: torch.dtype) -> dict[str, Tensor]:
    """Gates that are ``value`` for every input: w = 0, c = value."""
    gates: dict[str, Tensor] = {}
    for name, tensor in experts.items():
        if name.endswith(".A"):
            linear = name.removesuffix(".A")
            gates[f"{linear}.weight"] = torch.zeros(tensor.shape[1], dtype=dtype)
            gates[f"{linear}.bias"] = torch.tensor(value, dtype=dtype)
    return gates


def adapt_gates(
    state: State,
    arrival: Arrival,
    options: ResolvedOptions,
    newest: Tensors,
    replay: MingleReplay,
    progress: Progress = silent,
) -> AdaptedGates:
    """Distils the checkpoint into the newest gate rows, then collects the directions they rely on.

    ``newest``: the tensors of the new step so far.
    """
    generator = derived_generator(arrival, len(state.steps))
    seeds = choose_seeds(state.base, arrival, options, replay, generator)
    place = Placement(torch.bfloat16 if options.trunk == "bfloat16" else None)
    if place.dtype is not None:
        state = replace(state, base=replace(state.base, dtype=place.dtype))
    model, layers = open_gates(state, options, newest, generator, replay.gates or {})
    place.place(model)
    batches = replay.batches
    if batches is None:
        batches = draw_batches(count(seeds.batch), options.batch_size, options.steps, generator)
    training = GateTraining(distillation(state.base, model, seeds, options), batches, progress=progress)
    losses = train_gates(state, options, layers, training)
    subspace = new_directions(state, options, model, layers, seeds.batch, seeds.head)
    report = {"losses": losses, "seeds": seeds.report}
    return AdaptedGates(gate_tensors(layers, options), subspace, report, seeds.looks)


def open_gates(
    state: State,
    options: MingleOptions,
    newest: Tensors,
    generator: torch.Generator,
    given: Mapping[str, tuple[Tensor, Tensor]] = MappingProxyType({}),
) -> tuple[nn.Module, dict[str, MixtureLinear]]:
    """The model with the new experts and a trainable gate row for each; ``given`` rows instead of drawn."""
    model, layers = assemble(state, options, newest)
    for name, layer in layers.items():
        weight, bias = given.get(name) or _initial_gate(layer, options, generator)
        layer.gate.append(weight, bias, trainable=True)
        if options.old_gates == "trained" and state.steps:
            layer.gate.thaw()
    return model, layers


class GateTraining(NamedTuple):
    """The loss over batch indices, the batches, and further parameters that train with the gates."""

    loss: Callable[[Tensor], Tensor]
    batches: Sequence[Tensor]
    also: Sequence[Tensor] = ()
    progress: Progress = silent


def train_gates(
    state: State, options: ResolvedOptions, layers: Mapping[str, MixtureLinear], training: GateTraining
) -> list[float]:
    """Trains the open gates outside the protected span and freezes them. Raises DivergedError."""
    loss, batches, also, progress = training
    losses = adapt(
        [_gate_group(state, group, layers, options) for group in merged_groups(state.base, options)],
        loss,
        batches,
        lr=options.lr,
        acts_on=options.acts_on,
        also=also,
        report=lambda done, value: progress(f"adapting, loss {value:.4f}", done, len(batches)),
    )
    for layer in layers.values():
        layer.gate.freeze()
    return losses


def new_directions(
    state: State,
    options: MingleOptions,
    model: nn.Module,
    layers: Mapping[str, MixtureLinear],
    batch: Batch,
    head: Head,
) -> dict[str, Tensor]:
    """The columns that the layers' inputs on ``batch`` add to each group's protected basis."""
    groups = merged_groups(state.base, options)
    moments = second_moments(
        {group.name: layers[group.name] for group in groups},
        [_forward(state.base, model, part, head) for part in split(batch, FORWARD_BATCH)],
        augmented=options.gate_bias == "augmented",
    )
    return {
        group.name: extend_basis(
            _basis(state, group, layers[group.name], options),
            moments[group.name].top_directions(options.directions),
            options.basis,
        )
        for group in groups
    }


def gate_tensors(layers: Mapping[str, MixtureLinear], options: MingleOptions) -> dict[str, Tensor]:
    """The gate rows that a step stores: the newest ones, or all of them when all were trained."""
    stored: slice | int = slice(None) if options.old_gates == "trained" else -1
    gates = {f"{name}.weight": layer.gate.weight[stored] for name, layer in layers.items()}
    return gates | {f"{name}.bias": layer.gate.bias[stored] for name, layer in layers.items()}


class Seeds(NamedTuple):
    """Chosen seed samples with what the teacher says of them, and how they were chosen."""

    lesson: Lesson
    head: Head
    report: dict[str, Any]
    chosen: Tensor
    looks: SeedLooks | None

    @property
    def batch(self) -> Batch:
        """The samples."""
        return self.lesson.batch


def choose_seeds(
    base: Base, arrival: Arrival, options: MingleOptions, replay: MingleReplay, generator: torch.Generator
) -> Seeds:
    """Draws seed samples and asks the teacher once about each. Raises SeedsError, CheckpointError."""
    pool, head = require_seeds(arrival)
    teacher = base.backbone.build(arrival.checkpoint, base.checkpoint, base.dtype)
    chosen, lesson = replay.seeds, None
    if chosen is None:
        classes = pool.labels
        if options.seeds == "teacher":
            lesson = base.backbone.teach(teacher, pool.batch, head)
            classes = lesson.classes
        wanted = options.seeds_in_all or options.seeds_per_class * len(head.classes)
        chosen = select_seeds(options.seeds, count(pool.batch), wanted, generator, classes=classes)
    if lesson is None:
        lesson = base.backbone.teach(teacher, take(pool.batch, chosen), head)
    else:
        lesson = lesson.take(chosen)
    looks = look_at_seeds(base, arrival, teacher)
    return Seeds(lesson, head, seed_report(pool, options.seeds, chosen), chosen, looks)


def distillation(
    base: Base, model: nn.Module, seeds: Seeds, options: MingleOptions
) -> Callable[[Tensor], Tensor]:
    """The loss of batch indices into the seeds: what keeps the model from saying what its teacher says."""
    objective = OBJECTIVES[options.loss]

    def loss(index: Tensor) -> Tensor:
        lesson = seeds.lesson.take(index)
        student = base.backbone.logits(model, lesson.batch, seeds.head)
        return objective(student, lesson.logits, options.temperature, lesson.mask)

    return loss


def _basis(state: State, group: LinearGroup, layer: MixtureLinear, options: MingleOptions) -> Tensor:
    # What gates are computed with, also where the layer itself is in half precision.
    empty = layer.gate.weight.new_zeros(layer.A.shape[1] + (options.gate_bias == "augmented"), 0)
    return torch.cat([empty, *(step.tensors["subspace"][group.name] for step in state.steps)], dim=1)


def _gate_group(
    state: State, group: LinearGroup, layers: Mapping[str, MixtureLinear], options: MingleOptions
) -> GateGroup:
    basis = _basis(state, group, layers[group.name], options)
    gamma = 0.0 if options.null_space == "hard" else options.gamma
    free = options.null_space == "off" or basis.shape[1] == 0
    projector = None if free else NullSpaceProjector(basis, beta=options.beta, gamma=gamma)
    gates = [layers[name].gate for name in group.linears]
    return GateGroup(gates, projector, augmented=options.gate_bias == "augmented")


def _initial_gate(
    layer: MixtureLinear, options: MingleOptions, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    weight = layer.gate.weight.new_zeros(layer.A.shape[1])
    if options.gate_init == "normal":
        weight = 0.01 * torch.randn(len(weight), generator=generator, dtype=weight.dtype)
    return weight, weight.new_zeros(())


def _forward(base: Base, model: nn.Module, batch: Batch, head: Head) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return base.backbone.logits(model, batch, head)

    return run
