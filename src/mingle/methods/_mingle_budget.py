"""A bound on the ranks, or on the bytes, of all experts together: what each of them keeps.

An expert is made smaller by using fewer of its leading ranks (`base_experts`), and what was given up does not
come back but by ``undo``. Nothing is written to earlier steps, and gates and protected subspaces stay whole.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from mingle.layers import LowRankExpert
from mingle.methods._mingle_options import Budget, bytes_of
from mingle.methods.base_experts import Tensors, served_expert, sharing_of
from mingle.methods.base_method import State


class Pool(NamedTuple):
    """Linears that share a limit, and what one rank of each takes from it."""

    costs: Mapping[str, int]
    limit: float


class Compressed(NamedTuple):
    """Ranks in use (t,) and merged gates M (t, t) by Linear, and the share of its energy each task lost."""

    ranks: dict[str, Tensor]
    sharing: dict[str, Tensor]
    lost: list[float]


def within_budget(
    state: State, task: str, experts: Mapping[str, Tensor], norm: float, budget: Budget, merge_cosine: float
) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
    """The tensors of a new step, its experts cut to what the budget leaves of them, and what to report.

    Where all experts of a pool – a Linear for a budget of ranks, the whole model for one of MB – take more
    than its limit: near-duplicates are merged (`merge_duplicates`), then the ranks that hold the most of
    their own task vector are kept (`kept_ranks`): ``σ² / ‖θi − θ0‖²``, by which a checkpoint far from the
    base does not starve the others. ``norm``: ``‖θt − θ0‖``; ``task`` is the name of the new one.
    """
    if budget is None:
        return {"experts": experts}, {}
    linears = [name.removesuffix(".A") for name in experts if name.endswith(".A")]
    earlier = [step.tensors for step in state.steps]
    grown = _grown(earlier, experts, linears)
    norms = [*(step.report["energy"]["norm"] for step in state.steps), norm]
    lost = [0.0] * len(norms)
    for pool in _pools(budget, experts, linears):
        if sum(cost * int(grown["ranks"][name].sum()) for name, cost in pool.costs.items()) > pool.limit:
            found = _compressed([*earlier, grown], pool, norms, merge_cosine)
            grown = grown | {
                "ranks": {**grown["ranks"], **found.ranks},
                "sharing": {**grown["sharing"], **found.sharing},
            }
            lost = [before + more for before, more in zip(lost, found.lost, strict=True)]
    left = dict(experts)
    for name in linears:
        expert = served_expert([*earlier, grown], len(earlier), name)
        left |= {f"{name}.A": expert.A.contiguous(), f"{name}.B": expert.B.contiguous()}
    return grown | {"experts": left}, {"budget": _report([*state.tasks, task], grown, lost)}


def kept_ranks(energies: Sequence[Tensor], costs: Sequence[int], limit: float) -> list[int]:
    """How many leading ranks of every expert to keep: as much energy as fits, taken greedily.

    ``energies``: falling, (r,) for each expert; ``costs``: of one of its ranks. The first rank of every
    expert that has any energy comes before all further ones; then the most energy per cost. So everyone
    keeps a rank while there is room for that, and where there is not the weakest keep none.
    """
    order = sorted(
        (rank > 0 or value == 0, -value / costs[index], index)
        for index, expert in enumerate(energies)
        for rank, value in enumerate(expert.tolist())
    )
    kept, left = [0] * len(energies), limit
    for _, _, index in order:
        if costs[index] <= left:
            kept[index] += 1
            left -= costs[index]
    return kept


def merge_duplicates(
    experts: Sequence[LowRankExpert], sharing: Tensor, threshold: float
) -> tuple[Tensor, dict[int, float]]:
    """Lets an expert i stand for a later j with ``cos(ΔW_i, ΔW_j) ≥ threshold``, ``ΔW = B A``.

    ``g_i ΔW_i + g_j ΔW_j ≈ (g_i + c g_j) ΔW_i`` with ``c = ⟨ΔW_i, ΔW_j⟩ / ‖ΔW_i‖²``: exact for multiples of
    each other, and gates are linear. Returns M (t, t), ``g ← g M``, after those of ``sharing``; and cos² of
    each expert that is not needed any more. Experts with deltas of a bias stay apart.
    """
    inner = _inner_products(experts).tolist()
    shared, merged = sharing.clone(), dict[int, float]()
    for j in range(len(experts)):
        for i in range(j):
            norms = math.sqrt(inner[i][i] * inner[j][j])
            biased = experts[i].bias is not None or experts[j].bias is not None
            if biased or i in merged or norms == 0 or inner[i][j] < threshold * norms:
                continue
            shared[:, i] += inner[i][j] / inner[i][i] * shared[:, j]
            shared[:, j] = 0
            merged[j] = min((inner[i][j] / norms) ** 2, 1.0)
            break
    return shared, merged


def _pools(budget: int | str, experts: Mapping[str, Tensor], linears: Sequence[str]) -> Iterator[Pool]:
    if isinstance(budget, int):
        yield from (Pool({name: 1}, budget) for name in linears)
        return
    factors = {name: (experts[f"{name}.A"], experts[f"{name}.B"]) for name in linears}
    yield Pool(
        {name: (A.shape[1] + B.shape[0]) * A.element_size() for name, (A, B) in factors.items()},
        bytes_of(budget),
    )


def _grown(steps: Sequence[Tensors], experts: Mapping[str, Tensor], linears: Sequence[str]) -> dict[str, Any]:
    """The newest step's tensors with all of the new experts, and what is used of the earlier ones so far."""
    ranks, sharing = {}, {}
    for name in linears:
        earlier = steps[-1]["ranks"][name].tolist() if steps else []
        ranks[name] = torch.tensor([*earlier, len(experts[f"{name}.A"])])
        before = sharing_of(steps, name)
        if before is not None:
            sharing[name] = pad(before, (0, 1, 0, 1))
            sharing[name][-1, -1] = 1
    return {"experts": experts, "ranks": ranks, "sharing": sharing}


def _compressed(steps: Sequence[Tensors], pool: Pool, norms: Sequence[float], threshold: float) -> Compressed:
    ranks, sharing, lost = dict[str, Tensor](), dict[str, Tensor](), [0.0] * len(norms)
    places: list[tuple[str, int]] = []
    energies: list[Tensor] = []
    for name in pool.costs:
        experts = [served_expert(steps, index, name) for index in range(len(steps))]
        before = sharing_of(steps, name)
        alone = torch.eye(len(steps), dtype=torch.float64) if before is None else before
        shared, merged = merge_duplicates(experts, alone, threshold)
        if merged:
            sharing[name] = shared
        ranks[name] = torch.zeros(len(steps), dtype=torch.int64)
        for index, (expert, norm) in enumerate(zip(experts, norms, strict=True)):
            share = expert.A.double().square().sum(dim=1) / (norm**2 or 1.0)
            if index in merged:
                lost[index] += (1 - merged[index]) * float(share.sum())
                continue
            places.append((name, index))
            energies.append(share)
    kept = kept_ranks(energies, [pool.costs[name] for name, _ in places], pool.limit)
    for (name, index), energy, rank in zip(places, energies, kept, strict=True):
        ranks[name][index] = rank
        lost[index] += float(energy[rank:].sum())
    return Compressed(ranks, sharing, lost)


def _inner_products(experts: Sequence[LowRankExpert]) -> Tensor:
    """``⟨ΔW_i, ΔW_j⟩ = Σ (B_iᵀ B_j) ∘ (A_i A_jᵀ)`` (t, t), without any ΔW."""
    A = torch.cat([expert.A.double() for expert in experts])
    B = torch.cat([expert.B.double() for expert in experts], dim=1)
    ranks = torch.tensor([len(expert.A) for expert in experts])
    owner = torch.eye(len(experts), dtype=A.dtype).repeat_interleave(ranks, dim=0)
    return owner.mT @ ((B.mT @ B) * (A @ A.mT)) @ owner


def _report(tasks: Sequence[str], grown: Mapping[str, Any], lost: Sequence[float]) -> dict[str, Any]:
    """Ranks in use by task over all Linears, how many experts are merged into others, and what was lost."""
    ranks, merged = sum(grown["ranks"].values()), torch.zeros(len(tasks), dtype=torch.int64)
    for sharing in grown["sharing"].values():
        merged += sharing.diagonal() == 0
    return {
        "linears": len(grown["ranks"]),
        "ranks": dict(zip(tasks, ranks.tolist(), strict=True)),
        "merged": dict(zip(tasks, merged.tolist(), strict=True)),
        "lost": dict(zip(tasks, lost, strict=True)),
    }
