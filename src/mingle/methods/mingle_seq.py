"""MINGLE-Seq (arXiv 2505.11883): the sequential variant, trained on labelled samples."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mingle.adaptation import draw_batches
from mingle.backbones import count
from mingle.layers import LowRankExpert, MixtureLinear
from mingle.methods._mingle_budget import within_budget
from mingle.methods._mingle_experts import assemble, build_experts
from mingle.methods._mingle_gates import GateTraining, gate_tensors, new_directions, open_gates, train_gates
from mingle.methods._mingle_options import GateOptions, ResolvedOptions
from mingle.methods._mingle_resolve import resolve
from mingle.methods._seed_samples import (
    LabelledMethod,
    cross_entropy_on,
    derived_generator,
    require_labels,
    seed_report,
)
from mingle.methods.base_method import Arrival, Base, Progress, State, Step, silent
from mingle.subspace import svd_of_factors


class MingleSeqOptions(GateOptions):
    """mingle's options of experts and gates, with the variant's 500 steps and hard null space (γ = 0)."""

    steps: int = Field(500, ge=0)
    null_space: Literal["relaxed", "hard", "off"] = "hard"


class MingleSeq(LabelledMethod[MingleSeqOptions]):
    """A, B and gate of the newest task train on its labelled samples with cross-entropy; the rest is frozen.

    A and B start, our choice, where mingle's expert of the checkpoint lies: the truncated SVD of the
    projected task vector. The checkpoint is used for nothing else. Training is free to leave the projected
    subspace; only gates are kept in the null space of earlier tasks' inputs, which come from training data.
    """

    options_type = MingleSeqOptions

    def settings(self, base: Base) -> dict[str, Any]:
        """Every option with the value that is used. Raises UnknownNameError for the sites."""
        used = resolve(self.options, base)
        return self.options.model_dump() | {"rank": used.rank}

    def update(self, state: State, arrival: Arrival, progress: Progress = silent) -> State:
        """Trains the task's experts and gates, then protects what the task uses.

        Raises SeedsError without labelled samples, CheckpointError without a head, DivergedError.
        """
        pool, labels, head = require_labels(arrival)
        base, options = state.base, resolve(self.options, state.base)
        generator = derived_generator(arrival, len(state.steps))
        experts, energy = build_experts(state, arrival, options, {}, progress)
        kept, budget = within_budget(
            state, arrival.name, experts, energy["norm"], options.budget, options.merge_cosine
        )
        experts = dict(kept["experts"])
        model, layers = open_gates(state, options, kept, generator)
        newest = {name: _NewestExpert(layer, len(experts[f"{name}.A"])) for name, layer in layers.items()}
        entropy = cross_entropy_on(base, model, pool.batch, labels, head)

        def loss(index: Tensor) -> Tensor:
            for expert in newest.values():
                expert.write()
            return entropy(index)

        samples = count(pool.batch)
        batches = draw_batches(samples, options.batch_size, options.steps, generator)
        factors = [factor for expert in newest.values() for factor in (expert.A, expert.B)]
        losses = train_gates(state, options, layers, GateTraining(loss, batches, factors, progress))
        for name, expert in newest.items():
            experts[f"{name}.A"], experts[f"{name}.B"] = expert.finish(options, name)
        tensors = {
            **kept,
            "experts": experts,
            "gates": gate_tensors(layers, options),
            "subspace": new_directions(state, options, model, layers, pool.batch, head),
        }
        seeds = seed_report(pool, "all", torch.arange(samples))
        report = {"settings": self.settings(base), "energy": energy, "losses": losses, "seeds": seeds}
        report |= budget
        return state.append(Step(arrival.name, tensors, arrival.head, report))

    def model(self, state: State, task: str | None = None) -> nn.Module:
        """The base's class with a MixtureLinear at every merged site."""
        del task
        return assemble(state, resolve(self.options, state.base))[0]


class _NewestExpert:
    """The newest expert of a layer with trainable factors A (r, d_in) and B (d_out, r)."""

    def __init__(self, layer: MixtureLinear, rank: int) -> None:
        self.layer, older = layer, len(layer.A) - rank
        self.older = (layer.A[:older], layer.B[:, :older])
        self.A, self.B = nn.Parameter(layer.A[older:].clone()), nn.Parameter(layer.B[:, older:].clone())

    def write(self) -> None:
        """Puts the factors into the layer; gradients then reach them through it."""
        A, B = self.older
        self.layer.A, self.layer.B = torch.cat([A, self.A]), torch.cat([B, self.B], dim=1)

    @torch.no_grad()
    def finish(self, options: ResolvedOptions, name: str) -> tuple[Tensor, Tensor]:
        """Leaves the trained factors in the layer, frozen, as they are stored, and returns them.

        Under a budget as their SVD again: later steps drop the last ranks. Raises DivergedError.
        """
        expert = LowRankExpert(self.A.detach(), self.B.detach())
        if options.budget is not None and len(expert.A):
            U, S, V = svd_of_factors(expert.B, expert.A)
            expert = LowRankExpert(A=S[:, None] * V.mT, B=U.contiguous())
        if options.stored_dtype is not None:
            expert = expert.rounded(options.stored_dtype, name)
        self.A, self.B = (nn.Parameter(f.to(self.layer.A)) for f in (expert.A, expert.B))
        self.write()
        return expert.A, expert.B


PLUGIN = MingleSeq
