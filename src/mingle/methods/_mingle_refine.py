"""Gates in closed form, and a few steps of distillation that start from them (`refine`).

Only the newest row of every router moves, and its step is kept out of the leading directions of what the
routers read of earlier tasks, which their stored statistics hold.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mingle.adaptation import GateGroup, adapt, draw_batches
from mingle.backbones import count, take
from mingle.errors import ConfigError
from mingle.methods._mingle_analytic import mount_routers, solved_gates, unlooked_seeds
from mingle.methods._mingle_experts import mount_experts, mount_norms
from mingle.methods._mingle_gates import Seeds, choose_seeds, distillation
from mingle.methods._mingle_options import MingleReplay, ResolvedOptions
from mingle.methods._mingle_similarity import confused_with
from mingle.methods._seed_check import SeedLooks, look_at_seeds
from mingle.methods._seed_samples import derived_generator
from mingle.methods.base_experts import Tensors
from mingle.methods.base_method import Arrival, Progress, State, require_pool
from mingle.subspace import NullSpaceProjector, extend_basis


def analytic_gates(
    state: State,
    arrival: Arrival,
    options: ResolvedOptions,
    newest: Tensors,
    replay: MingleReplay,
    progress: Progress,
) -> tuple[dict[str, Tensor], dict[str, Any], SeedLooks | None]:
    """The ``router`` tensors of a new step (see `_mingle_analytic`), what to report, and how its seeds look.

    Raises SeedsError, CheckpointError, DivergedError, ConfigError for a replay of more than seeds and ranks.
    """
    if replay.gates is not None or replay.batches is not None:
        raise ConfigError(
            "replay: gates in closed form start from no gates and need no batches; give seeds and "
            "effective_ranks alone, or use gates 'adapted'"
        )
    generator, pool = derived_generator(arrival, len(state.steps)), require_pool(arrival)
    if not options.refine:
        chosen, seed_info = unlooked_seeds(arrival, options, replay, generator)
        tensors, gates = solved_gates(state, options, newest, arrival.name, take(pool.batch, chosen))
        looks = look_at_seeds(state.base, arrival)
        return tensors, {"router": _router_report(tensors, gates), "seeds": seed_info}, looks
    seeds = choose_seeds(state.base, arrival, options, replay, generator)
    tensors, gates = solved_gates(state, options, newest, arrival.name, take(pool.batch, seeds.chosen))
    similar = confused_with(gates, arrival.name, options.similar)
    protected = [step.tensors["router"] for step in state.steps if step.task not in similar]
    tensors, losses = _refined(state, options, newest, tensors, seeds, protected, generator, progress)
    report = {"router": _router_report(tensors, gates), "seeds": seeds.report}
    return tensors, report | {"losses": losses}, seeds.looks


def _router_report(tensors: Mapping[str, Tensor], gates: Mapping[str, float]) -> dict[str, Any]:
    return {"gates_on_seeds": dict(gates), "bytes": sum(tensor.nbytes for tensor in tensors.values())}


def _refined(
    state: State,
    options: ResolvedOptions,
    newest: Tensors,
    solved: Mapping[str, Tensor],
    seeds: Seeds,
    protected: Sequence[Mapping[str, Tensor]],
    generator: torch.Generator,
    progress: Progress,
) -> tuple[dict[str, Tensor], list[float]]:
    """``solved`` with its newest rows trained, and what that added to them; the losses.

    ``newest``: tensors of the new step so far; ``protected``: the ``router`` tensors of earlier steps, off
    which the new rows stay. Raises DivergedError.
    """
    model, layers = mount_experts(state, options, newest)
    mounted = mount_routers(state.base, model, layers, options, solved)
    mount_norms(state, options, model, layers, newest)
    for gate, _ in mounted.values():
        gate.open()
    batches = draw_batches(count(seeds.batch), options.batch_size, options.refine, generator)
    losses = adapt(
        [
            GateGroup([gate], _projector(protected, place, options), False)
            for place, (gate, _) in mounted.items()
        ],
        distillation(state.base, model, seeds, options),
        batches,
        lr=options.lr,
        acts_on=options.acts_on,
        report=lambda done, value: progress(f"refining, loss {value:.4f}", done, len(batches)),
    )
    tensors = dict(solved)
    for place, (gate, _) in mounted.items():
        gate.freeze()
        weight = solved[f"{place}.weight"].clone()
        added = gate.weight[-1].to(weight) - weight[-1]
        weight[-1] += added
        tensors |= {f"{place}.weight": weight, f"{place}.refined": added}
    return tensors, losses


def _projector(
    protected: Sequence[Mapping[str, Tensor]], place: str, options: ResolvedOptions
) -> NullSpaceProjector | None:
    """Off the leading directions that a router at this place reads of earlier tasks."""
    if options.null_space == "off" or not protected:
        return None
    factors = [router[f"{place}.factor"] for router in protected]
    basis = factors[0].new_zeros(factors[0].shape[1], 0)
    for factor in factors:
        # Right singular vectors times their singular values, the largest first.
        leading = factor[: options.directions]
        directions = normalize(leading[leading.any(dim=1)], dim=1).mT
        basis = torch.cat([basis, extend_basis(basis, directions)], dim=1)
    gamma = 0.0 if options.null_space == "hard" else options.gamma
    return NullSpaceProjector(basis.float(), beta=options.beta, gamma=gamma)
