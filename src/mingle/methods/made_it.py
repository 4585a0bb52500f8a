"""Experts that merge where they are alike, routed by their input subspaces: after MADE-IT (arXiv 2604.22464).

From the paper's public description: experts are truncated SVDs of rank ``0.1 · min(d_out, d_in)``; a metric
of affinity between subspaces, made of projections, and a threshold that adapts to its distribution decide
whether a task adds an expert or is merged into one; routing needs neither data nor training, by the cosine
of a feature and its projection on an expert's input subspace.

RECONSTRUCTED by us, all that says how: the `affinity` (of input subspaces); the `threshold` (mean and
deviation over the Linears of a step, κ = 1); that an expert joins at most one other, and becomes what
`joined` computes (the truncated SVD of the mean of their low-rank products); that whole samples are routed,
by the mean of their tokens; the softmax over experts and its temperature; that nothing but Linears is merged;
what of all this a step stores. Tables call it MADE-IT-like.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize, pad

from mingle.layers import LowRankExpert, MixtureLinear, SubspaceGate
from mingle.methods._mingle_experts import build_experts
from mingle.methods._mingle_options import ExpertOptions
from mingle.methods._mingle_resolve import resolve
from mingle.methods.base_experts import Tensors, served_expert
from mingle.methods.base_method import Arrival, Base, Progress, State, Step, silent
from mingle.methods.base_router import RouterMethod
from mingle.subspace import Projection, svd_of_factors

RANK_SHARE = 0.1
"""Rank of an expert by the smaller side of its Linear, the paper's."""

DUPLICATE = 0.99
"""An affinity that is always enough, so that a checkpoint that comes twice is one expert everywhere."""


class MadeItOptions(ExpertOptions):
    """``rank`` left out: ``0.1 · min(d_out, d_in)`` of every Linear, rounded down, at least 1.

    ``merge_deviations``: κ of the `threshold`; None: no experts are merged. ``merged``: what those that are
    become. ``scores``: what becomes of the cosines – ``softmax`` at ``temperature``, or 1 for the largest.
    """

    projection: Projection = "none"
    merge_deviations: float | None = 1.0
    merged: Literal["mean", "sum"] = "mean"
    scores: Literal["softmax", "top1"] = "softmax"
    temperature: float = Field(0.05, gt=0)


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "unmerged": {"merge_deviations": None},
    "top1": {"scores": "top1"},
}


class MadeIt(RouterMethod[MadeItOptions]):
    """``g(x) = softmax(s / τ)`` over experts that several tasks may share, ``s_i = ‖V_i V_iᵀ x̄‖ / ‖x̄‖``.

    A step stores one expert of every Linear: its task's, or what that became together with an earlier one,
    which then has no rank in use any more. So no earlier step changes, and a prefix is the model as it was.
    The gate of an expert of several tasks is that of the newest.
    """

    options_type = MadeItOptions
    presets = PRESETS

    def settings(self, base: Base) -> dict[str, Any]:
        """Every option; a rank that is left out differs by Linear. Raises UnknownNameError for the sites."""
        resolve(self.options, base)
        return self.options.model_dump()

    def update(self, state: State, arrival: Arrival, progress: Progress = silent) -> State:
        """Builds the experts of the task and merges them with those they are alike; seeds are not used."""
        options = resolve(self.options, state.base)
        share = RANK_SHARE if self.options.rank is None else None
        experts, energy = build_experts(state, arrival, options, {}, progress, rank_share=share)
        tensors, merging = evolved([step.tensors for step in state.steps], experts, self.options)
        report = {"settings": self.settings(state.base), "energy": energy, "merging": merging}
        return state.append(Step(arrival.name, tensors, arrival.head, report))

    def route(self, layer: MixtureLinear, state: State, task: str | None) -> None:
        """A gate made of the experts that are left, which are all that compete."""
        del state, task
        layer.share(None)
        temperature = self.options.temperature if self.options.scores == "softmax" else None
        layer.gate = SubspaceGate(layer.A, layer.task_of_rank, temperature)


def evolved(
    steps: Sequence[Tensors], experts: Mapping[str, Tensor], options: MadeItOptions
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors of a new step (see `base_experts`), and what to report.

    In every Linear the new expert is compared with the earlier ones, and joins the one it is most affine
    to from the `threshold` on. ``sharing`` says whose expert each task uses: M (t, t), one 1 in every row.
    """
    linears = [name.removesuffix(".A") for name in experts if name.endswith(".A")]
    nearest = {name: _nearest(steps, experts[f"{name}.A"], name) for name in linears} if steps else {}
    least = threshold([value for value, _ in nearest.values()], options.merge_deviations)
    joins = {
        name: other
        for name, (value, other) in nearest.items()
        if least is not None and value >= least and value > 0
    }
    tensors: dict[str, dict[str, Tensor]] = {"experts": dict(experts), "ranks": {}, "sharing": {}}
    for name in linears:
        ranks = pad(steps[-1]["ranks"][name], (0, 1)) if steps else torch.zeros(1, dtype=torch.int64)
        sharing = torch.zeros(len(ranks), len(ranks), dtype=torch.float64)
        sharing[:-1, :-1] = steps[-1]["sharing"][name] if steps else 0
        sharing[-1, -1] = 1
        if name in joins:
            other = joins[name]
            users = sharing[:, other] == 1
            new = LowRankExpert(experts[f"{name}.A"], experts[f"{name}.B"])
            new = joined(served_expert(steps, other, name), new, int(users.sum()), options.merged)
            if options.stored_dtype is not None:
                new = new.rounded(options.stored_dtype, name)
            tensors["experts"] |= {f"{name}.A": new.A, f"{name}.B": new.B}
            sharing[users], ranks[other] = sharing[-1].clone(), 0
        ranks[-1] = len(experts[f"{name}.A"])
        tensors["ranks"][name], tensors["sharing"][name] = ranks, sharing
    left = sum(int((ranks > 0).sum()) for ranks in tensors["ranks"].values())
    report = {"threshold": least, "joined": list(joins), "linears": len(linears), "experts": left}
    return tensors, report


def affinity(one: Tensor, two: Tensor) -> float:
    """``‖V_i V_jᵀ‖_F² / min(r_i, r_j)``: mean cos² of the principal angles between two input subspaces.

    ``one`` (r_i, d_in) and ``two`` (r_j, d_in) have orthogonal rows, as A has; rows of zeros span nothing.
    1 where one subspace contains the other, 0 where they are orthogonal or one is empty.
    """
    inside = normalize(one.double(), dim=1) @ normalize(two.double(), dim=1).mT
    rank = min(int(rows.any(dim=1).sum()) for rows in (one, two))
    return float(inside.square().sum()) / rank if rank else 0.0


def threshold(affinities: Sequence[float], deviations: float | None) -> float | None:
    """``min(mean + κ · std, DUPLICATE)`` over the Linears' largest affinities; None where nothing may join.

    So what is alike is judged by how alike the new experts are to the earlier ones elsewhere in the model.
    """
    if deviations is None or not affinities:
        return None
    values = torch.tensor(affinities, dtype=torch.float64)
    return min(float(values.mean() + deviations * values.std(correction=0)), DUPLICATE)


def joined(
    earlier: LowRankExpert, new: LowRankExpert, tasks: int, merged: Literal["mean", "sum"]
) -> LowRankExpert:
    """The truncated SVD, of the new expert's rank, of the mean over all tasks or the sum of ``B A``.

    ``tasks``: how many the earlier expert stands for.
    """
    weights = (tasks / (tasks + 1), 1 / (tasks + 1)) if merged == "mean" else (1.0, 1.0)
    B = torch.cat([weight * e.B.double() for weight, e in zip(weights, (earlier, new), strict=True)], dim=1)
    U, S, V = svd_of_factors(B, torch.cat([earlier.A.double(), new.A.double()]))
    rank = len(new.A)
    A = (S[:, None] * V.mT)[:rank].to(new.A.dtype)
    return LowRankExpert(A.contiguous(), U[:, :rank].to(new.B.dtype).contiguous())


def _nearest(steps: Sequence[Tensors], A: Tensor, linear: str) -> tuple[float, int]:
    """The largest affinity to an earlier expert, and whose it is: the oldest of equals."""
    found = [affinity(served_expert(steps, index, linear).A, A) for index in range(len(steps))]
    best = max(found)
    return best, found.index(best)


PLUGIN = MadeIt
