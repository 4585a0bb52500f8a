"""Gates in closed form: where routers read, what a step keeps for them, and how they get into the model.

Tensors of a step's ``router``, float64, for every place where a router reads: ``<place>.factor`` (q, d̃) and
``<place>.mean`` (d̃,), the statistics of the task alone, and ``<place>.weight`` (t, d̃), the gates of all tasks
as they were solved for at that step; ``<place>.confusion`` (t, t), by which they are shared. So ``undo`` has
nothing to subtract. ``<place>.refined`` (d̃,), if there is one: what distillation added to the task's own row,
then and at every later step (`_mingle_refine`).
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mingle.adaptation import (
    RouterStatistics,
    RouterSystem,
    router_statistics,
    select_seeds,
    watch_inputs,
)
from mingle.backbones import Batch, count, split
from mingle.backbones.base_backbone import FORWARD_BATCH
from mingle.errors import CheckpointError, ConfigError, MingleError
from mingle.layers import (
    ClosedFormGate,
    ClosedFormRouter,
    Decision,
    MixtureLinear,
    PooledInput,
    Reading,
    StemRouter,
    TrunkRouter,
    trunk_of,
)
from mingle.methods._mingle_experts import mount_experts, mount_norms
from mingle.methods._mingle_options import MingleOptions, MingleReplay, ResolvedOptions, RouterOptions
from mingle.methods._mingle_resolve import places, stack_of
from mingle.methods._seed_samples import seed_report
from mingle.methods.base_experts import Tensors, lone_expert
from mingle.methods.base_method import Arrival, Base, State, require_pool


class Mounted(NamedTuple):
    """The gates of a place, and the router that computes them where its Linears do not."""

    gate: ClosedFormGate
    router: ClosedFormRouter | None


class _AllRead(MingleError):  # noqa: N818 – no error, but passed on like ours
    """Ends a forward pass of the base: the one router has read."""


def solved_gates(
    state: State, options: ResolvedOptions, newest: Tensors, task: str, batch: Batch
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The ``router`` tensors of a new step, from its seeds, and the mean gates of all tasks on these seeds,
    each left out in turn. Raises DivergedError, and ConfigError where routers do not run once a sample.
    """
    tensors: dict[str, Tensor] = {}
    earlier = [step.tensors["router"] for step in state.steps]
    shares = []
    for place, read in _read(state, options, newest, batch).items():
        real = read.any(dim=2)
        seen = read[real]
        own = router_statistics(seen, options.router_rank)
        known = [RouterStatistics(step[f"{place}.factor"], step[f"{place}.mean"]) for step in earlier]
        system = RouterSystem([*known, own], options.router_ridge)
        still = torch.zeros_like(own.mean)
        refined = torch.stack([*(step.get(f"{place}.refined", still) for step in earlier), still])
        tensors |= {
            f"{place}.factor": own.factor,
            f"{place}.mean": own.mean,
            f"{place}.weight": system.weight() + refined,
        }
        if options.router_rank is not None:
            # Leaving a sample out takes all of it away, and so needs all of it to be there.
            system = RouterSystem([*known, router_statistics(seen)], options.router_ridge)
        scores = system.left_out_scores(read) + read.double() @ refined.mT
        shares.append(_decision(options)(scores[real]).mean(0))
        if options.router_share == "confused" and options.router_form != "raw":
            tensors[f"{place}.confusion"] = _confusion(
                earlier[-1][f"{place}.confusion"] if earlier else None, shares[-1]
            )
    gates = torch.stack(shares).mean(0).tolist()
    return tensors, dict(zip([*state.tasks, task], gates, strict=True))


def _confusion(earlier: Tensor | None, row: Tensor) -> Tensor:
    """(T, T): the mean gates that the router gives left-out seeds of every task at its step, made symmetric.

    Seeds of earlier tasks are gone; that they are taken for the new task as often as its seeds for them is
    assumed. ``row`` (T,): of the new task.
    """
    if earlier is None:
        return row[None]
    above = torch.cat([earlier, row[:-1, None]], dim=1)
    return torch.cat([above, row[None]])


def unlooked_seeds(
    arrival: Arrival, options: ResolvedOptions, replay: MingleReplay, generator: torch.Generator
) -> tuple[Tensor, dict[str, Any]]:
    """Seeds that are given, or drawn without a teacher, and the report on them.

    Raises SeedsError, CheckpointError.
    """
    pool, wanted = require_pool(arrival), options.seeds_in_all
    if replay.seeds is not None:
        return replay.seeds, seed_report(pool, options.seeds, replay.seeds)
    if wanted is None:
        if arrival.head is None:
            raise CheckpointError(
                f"{arrival.checkpoint.source}: no class head found to count seeds by; pass head= (--head), "
                "or seeds_in_all"
            )
        wanted = options.seeds_per_class * len(arrival.head.classes)
    chosen = select_seeds(options.seeds, count(pool.batch), wanted, generator, classes=pool.labels)
    return chosen, seed_report(pool, options.seeds, chosen)


def routed_model(state: State, options: MingleOptions) -> nn.Module:
    """The merged model with a router at every place."""
    model, layers = mount_experts(state, options)
    if state.steps:
        mount_routers(state.base, model, layers, options, state.steps[-1].tensors["router"])
        mount_norms(state, options, model, layers)
    return model.eval()


def mount_routers(
    base: Base,
    model: nn.Module,
    layers: Mapping[str, MixtureLinear],
    options: MingleOptions,
    solved: Mapping[str, Tensor],
) -> dict[str, Mounted]:
    """Gives every layer its gate; without a ``<place>.weight`` among ``solved`` all gates are 1."""
    reading, mounted = Reading(options.router_features), dict[str, Mounted]()
    for reader, linears in places(base, options):
        pool, weight = layers[linears[0]].pool, solved.get(f"{reader}.weight")
        # Gates decide in float32, the statistics are in float64.
        gate = ClosedFormGate(
            None if weight is None else weight.float(),
            reading,
            _decision(options),
            solved.get(f"{reader}.confusion"),
        )
        router = None
        if options.router_reads != "layer":
            router = _router(gate, pool, base, model, options)
            router.serve(model.get_submodule(reader))
        held = gate if router is None else router.gate
        held.reduction = options.gate_reduction
        for name in linears:
            layers[name].gate = held
        mounted[reader] = Mounted(gate, router)
    return mounted


def _router(
    gate: ClosedFormGate, pool: PooledInput, base: Base, model: nn.Module, options: MingleOptions
) -> ClosedFormRouter:
    if options.router_reads == "block":
        return ClosedFormRouter(gate, pool)
    stack = stack_of(base, options)
    if options.router_reads == "stem":
        return StemRouter(gate, pool, [model.get_submodule(stack.block(depth - 1)) for depth in stack.depths])
    trunk = trunk_of(model.get_submodule(stack.name), stack.blocks, stack.depths[-1])
    blocks = list(trunk.get_submodule(stack.blocks).children())
    return TrunkRouter(gate, pool, trunk, [blocks[depth - 1] for depth in stack.depths])


def _decision(options: RouterOptions) -> Decision:
    return Decision(options.router_form, options.router_temperature, options.router_top)


def _read(state: State, options: ResolvedOptions, newest: Tensors, batch: Batch) -> dict[str, Tensor]:
    """What a router at every place reads of the samples: (n, k, d̃), rows of zeros are none.

    In the base alone for a trunk or a stem. Elsewhere in the base and with the new expert, or the earlier one
    that stands for it, at gate 1: the two ends of what a sample of the task can meet; and each time as often
    as the place runs, which in a decoder is once a token.
    """
    found = _read_once(state.base, options, None, batch)
    if not options.reads_base:
        steps = [*(step.tensors for step in state.steps), newest]
        own = dict(newest["experts"])
        for name in [name.removesuffix(".A") for name in own if name.endswith(".A")]:
            expert = lone_expert(steps, len(state.steps), name)
            own |= {f"{name}.A": expert.A, f"{name}.B": expert.B}
        more = _read_once(state.base, options, {"experts": own}, batch)
        found = {reader: torch.cat([part, more[reader]], dim=1) for reader, part in found.items()}
    return found


def _read_once(
    base: Base, options: ResolvedOptions, expert: Tensors | None, batch: Batch
) -> dict[str, Tensor]:
    model, layers = mount_experts(State(base), options, expert)
    mounted = mount_routers(base, model, layers, options, {})
    calls: dict[str, list[Tensor]] = {reader: [] for reader in mounted}
    found: dict[str, list[Tensor]] = {reader: [] for reader in mounted}

    def see(reader: str, hidden: Sequence[Tensor], pool: PooledInput) -> None:
        # A text that is continued keeps the gates of its beginning.
        if pool.held is None or "router" not in pool.held:
            calls[reader].append(mounted[reader].gate.reading(hidden, pool))
        if options.reads_base and sum(map(len, calls[reader])) >= count(part):
            raise _AllRead

    own = {}
    for reader, (_, router) in mounted.items():
        if router is None:
            own[reader] = layers[reader]
        else:
            router.register_forward_pre_hook(lambda r, args, reader=reader: see(reader, args, r.pool))
    with torch.no_grad(), watch_inputs(own, lambda name, x: see(name, [x], layers[name].pool)):
        for part in split(batch, FORWARD_BATCH):
            with suppress(_AllRead):
                base.backbone.features(model, part)
            for reader, rows in calls.items():
                found[reader] += _by_sample(reader, rows, count(part))
                rows.clear()
    return {reader: pad_sequence(samples, batch_first=True) for reader, samples in found.items()}


def _by_sample(reader: str, calls: Sequence[Tensor], size: int) -> Tensor:
    """What one router read in each of its calls, of all samples or of one after the other: (N, k, d̃)."""
    if calls and all(len(rows) == size for rows in calls):
        return torch.stack([*calls], dim=1)
    if sum(map(len, calls)) == size:
        return torch.cat([*calls])[:, None]
    raise ConfigError(
        f"router_reads: {reader!r} reads {[len(rows) for rows in calls]} samples in its calls, expected all "
        f"{size} seeds of a batch in each, or each in one of them; use another router_reads"
    )
