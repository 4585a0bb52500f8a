"""MINGLE (arXiv 2505.11883): low-rank experts, input-dependent gates, null-space constrained adaptation.

A step holds what its task added: ``experts`` (``<linear>.A``, ``.B``, ``.bias``), ``gates``
(``<linear>.weight``, ``.bias``) and ``subspace`` (``<group>``: new columns of the protected basis U).
Steps of earlier tasks are never touched again.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mingle.adaptation import OBJECTIVES, GateGroup, adapt, draw_batches, second_moments, select_seeds
from mingle.backbones import Batch, Head, count, take
from mingle.errors import ConfigError
from mingle.layers import Energy, LinearGroup, LowRankExpert, MixtureLinear, build_expert, wrap
from mingle.methods._mingle_options import PRESETS, MingleOptions, MingleReplay
from mingle.methods.base_method import Arrival, Base, Method, Progress, State, Step, require_seeds, silent
from mingle.subspace import NullSpaceProjector, extend_basis
from mingle.weights import task_vector

FORWARD_BATCH = 64
"""Samples per forward pass outside the adaptation loop."""

REFERENCE_WIDTH = 768
"""The width that the paper's lr and rank belong to."""


class Mingle(Method[MingleOptions]):
    """Each checkpoint becomes gated low-rank experts; only the newest gate is adapted."""

    options_type = MingleOptions
    presets = PRESETS

    @property
    def needs_seeds(self) -> bool:
        """True unless the gates are static."""
        return self.options.gates == "adapted"

    def resolve(self, base: Base) -> MingleOptions:
        """The options with lr and rank as the width rule sets them."""
        skeleton = base.backbone.skeleton(base.checkpoint)
        base.backbone.groups(skeleton, self.options.sites)  # refuses unknown sites before anything starts
        width = base.backbone.width(skeleton)
        rank = self.options.rank or min(max(64 * width // REFERENCE_WIDTH, 16), 64)
        lr = self.options.lr or round(1e-4 * max(1.0, REFERENCE_WIDTH / width), 7)
        return self.options.model_copy(update={"rank": rank, "lr": lr})

    def settings(self, base: Base) -> dict[str, Any]:
        """Every option with the value that is used."""
        return self.resolve(base).model_dump()

    @property
    def scored_seeds(self) -> bool:
        """True for ``seed_pool="scored"``."""
        return self.options.seed_pool == "scored"

    def update(self, state: State, arrival: Arrival, progress: Progress = silent) -> State:
        """Builds the experts of the task, adapts their gates, and protects what the task uses.

        Raises SeedsError without seeds, CheckpointError without a head, ConfigError for a foreign replay.
        """
        if arrival.replay is not None and not isinstance(arrival.replay, MingleReplay):
            raise ConfigError(f"replay: expected a MingleReplay, found {type(arrival.replay).__name__}")
        if self.needs_seeds:
            require_seeds(arrival)
        options = self.resolve(state.base)
        started = time.perf_counter()
        experts, energies = build_experts(state, arrival, options, progress)
        built = time.perf_counter()
        gates = {
            name: (torch.zeros(e.A.shape[1]), torch.tensor(options.static_gate))
            for name, e in experts.items()
        }
        subspace: dict[str, Tensor] = {}
        adaptation: dict[str, Any] = {}
        if options.gates == "adapted":
            gates, subspace, adaptation = adapt_gates(state, arrival, options, experts, progress)
        report = {
            "settings": options.model_dump(),
            "energy": energies,
            **adaptation,
            "timing": {"experts": built - started, "adaptation": time.perf_counter() - built},
        }
        tensors = {"experts": _expert_tensors(experts), "gates": _gate_tensors(gates), "subspace": subspace}
        return state.append(Step(arrival.name, tensors, arrival.head, report))

    def model(self, state: State, task: str | None = None) -> nn.Module:
        """The base's class with a MixtureLinear at every merged site."""
        del task
        return assemble(state, self.options)[0]


def build_experts(
    state: State, arrival: Arrival, options: MingleOptions, progress: Progress = silent
) -> tuple[dict[str, LowRankExpert], dict[str, Any]]:
    """The task's expert for every merged Linear, and where the energy of the task vector went."""
    base, replay = state.base, arrival.replay or MingleReplay()
    experts: dict[str, LowRankExpert] = {}
    energies: dict[str, Energy] = {}
    names = [name for group in _groups(base, options) for name in group.linears]
    for done, name in enumerate(names, start=1):
        delta = task_vector(base.checkpoint, arrival.checkpoint, f"{name}.weight", base.dtype)
        earlier = [_expert(step, name) for step in state.steps]
        expert, energies[name] = build_expert(
            delta,
            earlier,
            rank=options.rank or min(delta.shape),
            projection=options.projection,
            effective_rank=replay.effective_ranks.get(name),
        )
        if options.vectors == "gated" and f"{name}.bias" in base.checkpoint.entries:
            bias = task_vector(base.checkpoint, arrival.checkpoint, f"{name}.bias", base.dtype)
            expert = LowRankExpert(expert.A, expert.B, bias)
        experts[name] = expert
        progress("experts", done, len(names))
    return experts, energy_report(base, arrival, experts, energies)


def energy_report(
    base: Base, arrival: Arrival, experts: Mapping[str, LowRankExpert], energies: Mapping[str, Energy]
) -> dict[str, Any]:
    """Shares of ``‖θt − θ0‖²`` that were kept, dropped by projection, by rank, and not merged at all."""
    total = sum(
        float(task_vector(base.checkpoint, arrival.checkpoint, name, torch.float64).square().sum())
        for name in arrival.checkpoint.names()
    )
    biases = sum(float(e.bias.double().square().sum()) for e in experts.values() if e.bias is not None)
    kept, projection, rank = (
        sum(getattr(energy, part) for energy in energies.values()) for part in ("kept", "projection", "rank")
    )
    scale = total or 1.0
    shares = {"kept": kept + biases, "projection": projection, "rank": rank}
    shares = {part: value / scale for part, value in shares.items()}
    return {
        "norm": total**0.5,
        **shares,
        "not_merged": max(1.0 - sum(shares.values()), 0.0) if total else 0.0,
        "effective_rank": {name: energy.effective_rank for name, energy in energies.items()},
    }


def adapt_gates(
    state: State,
    arrival: Arrival,
    options: MingleOptions,
    experts: Mapping[str, LowRankExpert],
    progress: Progress = silent,
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor], dict[str, Any]]:
    """Gate rows of the task, new columns of the protected bases, and what happened on the way."""
    base, replay, groups = state.base, arrival.replay or MingleReplay(), _groups(state.base, options)
    generator = torch.Generator().manual_seed(_derived_seed(arrival, len(state.steps)))
    batch, targets, seeds, head = _seeds_and_targets(state, arrival, options, generator)
    model, layers = assemble(state, options)
    for name, layer in layers.items():
        layer.extend([experts[name]])
        weight, bias = (replay.gates or {}).get(name) or _initial_gate(layer, options, generator)
        layer.gate.append(weight, bias, trainable=True)
    bases = {group.name: _basis(state, group, layers[group.name], options) for group in groups}
    batches = replay.batches or draw_batches(count(batch), options.batch_size, options.steps, generator)
    objective = OBJECTIVES[options.loss]

    def loss(index: Tensor) -> Tensor:
        logits = base.backbone.classify(base.backbone.features(model, take(batch, index)), head)
        return objective(logits, targets[index], options.temperature)

    losses = adapt(
        [_gate_group(group, layers, bases[group.name], options) for group in groups],
        loss,
        batches,
        lr=options.lr or 1e-4,
        acts_on=options.acts_on,
        report=lambda done, value: progress(f"adapting, loss {value:.4f}", done, len(batches)),
    )
    for layer in layers.values():
        layer.gate.freeze()
    passes = [_forward(base, model, part) for part in _chunks(batch)]
    moments = second_moments(
        {name: layers[name] for name in bases}, passes, augmented=options.gate_bias == "augmented"
    )
    subspace = {
        name: extend_basis(basis, moments[name].top_directions(options.directions), options.basis)
        for name, basis in bases.items()
    }
    gates = {name: (layer.gate.weight[-1], layer.gate.bias[-1]) for name, layer in layers.items()}
    return gates, subspace, {"losses": losses, "seeds": seeds}


def assemble(state: State, options: MingleOptions) -> tuple[nn.Module, dict[str, MixtureLinear]]:
    """The merged model and its mixtures by name."""
    model = state.base.model()
    layers = wrap(model, state.base.backbone.groups(model, options.sites), options.gate_reduction)
    for name, layer in layers.items():
        layer.extend(_expert(step, name) for step in state.steps)
        for step in state.steps:
            gates = step.tensors["gates"]
            layer.gate.append(gates[f"{name}.weight"], gates[f"{name}.bias"])
    return model.eval(), layers


def _seeds_and_targets(
    state: State, arrival: Arrival, options: MingleOptions, generator: torch.Generator
) -> tuple[Batch, Tensor, dict[str, Any], Head]:
    pool, head = require_seeds(arrival)
    backbone, replay = state.base.backbone, arrival.replay
    teacher = backbone.build(arrival.checkpoint, state.base.checkpoint, state.base.dtype)
    wanted = options.seeds_per_class * len(head.classes)

    def teach(batch: Batch) -> Tensor:
        parts = [backbone.classify(_forward(state.base, teacher, part)(), head) for part in _chunks(batch)]
        return torch.cat(parts)

    classes = pool.labels
    if options.seeds == "teacher":
        classes = teach(pool.batch).argmax(-1)
    chosen = replay.seeds if replay is not None else None
    if chosen is None:
        chosen = select_seeds(options.seeds, count(pool.batch), wanted, generator, classes=classes)
    batch = take(pool.batch, chosen)
    about = {
        "source": pool.source,
        "selection": options.seeds,
        "used": len(chosen),
        "pool": count(pool.batch),
    }
    if pool.ids:
        about["ids"] = [pool.ids[i] for i in chosen.tolist()]
    return batch, teach(batch), about, head


def _basis(state: State, group: LinearGroup, layer: MixtureLinear, options: MingleOptions) -> Tensor:
    width = layer.A.shape[1] + (options.gate_bias == "augmented")
    return torch.cat(
        [layer.A.new_zeros(width, 0), *(step.tensors["subspace"][group.name] for step in state.steps)], dim=1
    )


def _gate_group(
    group: LinearGroup, layers: Mapping[str, MixtureLinear], basis: Tensor, options: MingleOptions
) -> GateGroup:
    gamma = 0.0 if options.null_space == "hard" else options.gamma
    free = options.null_space == "off" or basis.shape[1] == 0
    projector = None if free else NullSpaceProjector(basis, beta=options.beta, gamma=gamma)
    gates = [layers[name].gate for name in group.linears]
    return GateGroup(gates, projector, augmented=options.gate_bias == "augmented")


def _initial_gate(
    layer: MixtureLinear, options: MingleOptions, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    weight = layer.A.new_zeros(layer.A.shape[1])
    if options.gate_init == "normal":
        weight = 0.01 * torch.randn(len(weight), generator=generator, dtype=weight.dtype)
    return weight, weight.new_zeros(())


def _groups(base: Base, options: MingleOptions) -> list[LinearGroup]:
    return base.backbone.groups(base.backbone.skeleton(base.checkpoint), options.sites)


def _chunks(batch: Batch) -> list[Batch]:
    return [take(batch, slice(i, i + FORWARD_BATCH)) for i in range(0, count(batch), FORWARD_BATCH)]


def _forward(base: Base, model: nn.Module, batch: Batch) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return base.backbone.features(model, batch)

    return run


def _derived_seed(arrival: Arrival, step: int) -> int:
    # Depends on the run's seed and the position only, so that a resumed run draws the same numbers.
    digest = hashlib.sha256(f"{arrival.seed}/{step}/{arrival.name}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def _expert(step: Step, name: str) -> LowRankExpert:
    tensors = step.tensors["experts"]
    return LowRankExpert(tensors[f"{name}.A"], tensors[f"{name}.B"], tensors.get(f"{name}.bias"))


def _expert_tensors(experts: Mapping[str, LowRankExpert]) -> dict[str, Tensor]:
    parts = ((name, part, getattr(e, part)) for name, e in experts.items() for part in ("A", "B", "bias"))
    return {f"{name}.{part}": tensor for name, part, tensor in parts if tensor is not None}


def _gate_tensors(gates: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    rows = {f"{name}.weight": weight for name, (weight, _) in gates.items()}
    return rows | {f"{name}.bias": bias for name, (_, bias) in gates.items()}


PLUGIN = Mingle
