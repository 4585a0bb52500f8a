"""From a checkpoint to the experts of one step, and from steps to the merged model.

Tensors of a step's ``experts``: ``<linear>.A`` (r, d_in), ``<linear>.B`` (d_out, r) and, with
``vectors="gated"``, the deltas of biases and LayerNorm vectors under the parameters' own names.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mingle.layers import Energy, LinearGroup, MixtureLinear, build_expert, wrap, wrap_norms
from mingle.methods._mingle_options import MingleOptions, ResolvedOptions
from mingle.methods._mingle_resolve import merged_groups
from mingle.methods._mingle_similarity import overlap_report, shared_energy
from mingle.methods.base_experts import Tensors, served_expert, sharing_of
from mingle.methods.base_method import Arrival, Base, Progress, State, silent
from mingle.weights import task_vector

Experts = Mapping[str, Tensor]


def build_experts(
    state: State,
    arrival: Arrival,
    options: ResolvedOptions,
    effective_ranks: Mapping[str, int],
    progress: Progress = silent,
    *,
    rank_share: float | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The task's experts for every merged Linear, and where the energy of its task vector went.

    The report's ``overlap``: what the experts share with those of earlier tasks (`_mingle_similarity`).
    ``rank_share``: their rank is ``⌊rank_share · min(d_out, d_in)⌋``, at least 1, whatever the options say.
    """
    base, groups = state.base, merged_groups(state.base, options)
    steps = _steps(state)
    experts: dict[str, Tensor] = {}
    energies: dict[str, Energy] = {}
    shared = []
    places = [(group, name) for group in groups for name in group.linears]
    for done, (group, name) in enumerate(places, start=1):
        delta = task_vector(base.checkpoint, arrival.checkpoint, f"{name}.weight", base.dtype)
        earlier = [served_expert(steps, index, name) for index in range(len(steps))]
        rank = options.rank if rank_share is None else max(int(rank_share * min(delta.shape)), 1)
        expert, energies[name] = build_expert(
            group.turned(delta),
            earlier,
            rank=rank,
            projection=options.projection,
            effective_rank=effective_ranks.get(name),
        )
        if options.stored_dtype is not None:
            expert = expert.rounded(options.stored_dtype, name)
        experts[f"{name}.A"], experts[f"{name}.B"] = expert.A, expert.B
        shared.append(shared_energy(expert, earlier))
        progress("experts", done, len(places))
    vectors = {
        name: task_vector(base.checkpoint, arrival.checkpoint, name, base.dtype)
        for name in (_vectors(base, groups) if options.vectors == "gated" else ())
    }
    report = _energy_report(base, arrival, energies, vectors)
    return experts | vectors, report | {"overlap": overlap_report(state.tasks, shared)}


def assemble(
    state: State, options: MingleOptions, newest: Tensors | None = None
) -> tuple[nn.Module, dict[str, MixtureLinear]]:
    """The merged model and its mixtures by name.

    ``newest``: the step of a task that is being added, so far; the caller still owes every gate a row for it.
    """
    model, layers = mount_experts(state, options, newest)
    for name, layer in layers.items():
        for weight, bias in _gate_rows(state, options, name):
            layer.gate.append(weight, bias)
    mount_norms(state, options, model, layers, newest)
    return model.eval(), layers


def mount_experts(
    state: State, options: MingleOptions, newest: Tensors | None = None
) -> tuple[nn.Module, dict[str, MixtureLinear]]:
    """The base with the experts of all steps in their Linears, which still lack their gates."""
    model = state.base.model()
    layers = wrap(model, merged_groups(state.base, options), options.gate_reduction)
    steps = _steps(state, newest)
    for name, layer in layers.items():
        layer.extend(served_expert(steps, index, name) for index in range(len(steps)))
        layer.share(sharing_of(steps, name))
    return model.eval(), layers


def mount_norms(
    state: State,
    options: MingleOptions,
    model: nn.Module,
    layers: Mapping[str, MixtureLinear],
    newest: Tensors | None = None,
) -> None:
    """With ``vectors="gated"`` lets LayerNorms follow the gates, which are there, of what reads them."""
    if options.vectors != "gated":
        return
    experts = [step["experts"] for step in _steps(state, newest)]
    for name, norm in wrap_norms(model, merged_groups(state.base, options), layers).items():
        norm.extend((tensors[f"{name}.weight"], tensors[f"{name}.bias"]) for tensors in experts)


def _gate_rows(state: State, options: MingleOptions, name: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Weight and bias of every task's gate: each step has its own, or the newest step has all of them."""
    if options.old_gates == "trained":
        for step in state.steps[-1:]:
            gates = step.tensors["gates"]
            yield from zip(gates[f"{name}.weight"], gates[f"{name}.bias"], strict=True)
    else:
        for step in state.steps:
            gates = step.tensors["gates"]
            yield gates[f"{name}.weight"], gates[f"{name}.bias"]


def _steps(state: State, newest: Tensors | None = None) -> Sequence[Tensors]:
    return [step.tensors for step in state.steps] + ([] if newest is None else [newest])


def _vectors(base: Base, groups: list[LinearGroup]) -> Iterator[str]:
    for group in groups:
        if group.norm is not None:
            yield from (f"{group.norm}.weight", f"{group.norm}.bias")
        for name in group.linears:
            if f"{name}.bias" in base.checkpoint.entries:
                yield f"{name}.bias"


def _energy_report(
    base: Base, arrival: Arrival, energies: Mapping[str, Energy], vectors: Experts
) -> dict[str, Any]:
    """Shares of ``‖θt − θ0‖²`` that were kept, dropped by projection, by rank, and not merged at all."""
    left = {*arrival.checkpoint.names()} - {*vectors, *(f"{name}.weight" for name in energies)}
    total = sum(e.total for e in energies.values()) + sum(map(_energy, vectors.values()))
    total += sum(
        _energy(task_vector(base.checkpoint, arrival.checkpoint, name, torch.float64))
        for name in sorted(left)
    )
    parts = {
        "kept": sum(e.kept for e in energies.values()) + sum(map(_energy, vectors.values())),
        "projection": sum(e.projection for e in energies.values()),
        "rank": sum(e.rank for e in energies.values()),
    }
    shares = {part: value / total if total else 0.0 for part, value in parts.items()}
    return {
        "norm": total**0.5,
        **shares,
        "not_merged": max(1.0 - sum(shares.values()), 0.0) if total else 0.0,
        "effective_rank": {name: energy.effective_rank for name, energy in energies.items()},
    }


def _energy(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())
