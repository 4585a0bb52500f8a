"""A Linear with gated low-rank experts.

Shapes: x (…, d_in) -> y (…, d_out); A (R, d_in) and B (d_out, R) are the stacked factors of all experts,
R the sum of their ranks; gates (N, T).

The experts are a branch beside the Linear: ``tokens · R (d_in + d_out)`` multiplications. Gates that a whole
batch shares make one weight of it all where that is fewer: ``R · d_in · d_out``.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from mingle.layers.expert import LowRankExpert
from mingle.layers.gate import Gate, GateReduction, PooledInput
from mingle.layers.selection import Selection, UsedExpert


def is_linear(module: nn.Module) -> bool:
    """Whether a module computes ``y = W x + b``: an nn.Linear, or transformers' Conv1D."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Whether a Linear stores its weight as (d_in, d_out): transformers' Conv1D, which GPT-2 is made of."""
    # By its name, for importing transformers takes seconds.
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


class MixtureLinear(nn.Module):
    """``y = W0 x + b0 + Σ_i g_i(x) · (B_i A_i x [+ δb_i])``, (…, d_in) -> (…, d_out).

    ``linear`` is an nn.Linear or transformers' Conv1D. W0, b0 and all experts are frozen: no gradient of a
    weight is ever computed, and no dense ``B A`` is formed. Gradients flow through frozen gates and experts
    into x.

    ``selection``: which experts a sample uses; by default all.
    """

    selection = Selection()

    A: Tensor
    B: Tensor
    delta_bias: Tensor
    task_of_rank: Tensor
    sharing: Tensor | None

    def __init__(
        self, linear: nn.Module, pool: PooledInput | None = None, reduction: GateReduction = "sample"
    ) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.pool = pool if pool is not None else PooledInput()
        weight = linear.get_parameter("weight")
        dtype, (d_out, d_in) = weight.dtype, weight.mT.shape if is_transposed(linear) else weight.shape
        # Gates decide in float32 whatever the rest is in.
        wide = torch.promote_types(dtype, torch.float32)
        self.gate = Gate(d_in, reduction=reduction, dtype=wide)
        self.register_buffer("A", torch.zeros(0, d_in, dtype=dtype))
        self.register_buffer("B", torch.zeros(d_out, 0, dtype=dtype))
        self.register_buffer("delta_bias", torch.zeros(0, d_out, dtype=dtype))
        self.register_buffer("task_of_rank", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("sharing", None)
        self._has_delta_bias = False

    @property
    def tasks(self) -> int:
        """Number of experts."""
        return len(self.delta_bias)

    def extend(self, experts: Iterable[LowRankExpert]) -> None:
        """Adds experts, oldest first. Each needs a gate row too (``layer.gate.append``)."""
        new = list(experts)
        first = self.tasks
        owner = [torch.full((len(e.A),), first + i) for i, e in enumerate(new)]
        zero = self.delta_bias.new_zeros(self.B.shape[0])
        self.A = torch.cat([self.A, *(e.A.to(self.A) for e in new)])
        self.B = torch.cat([self.B, *(e.B.to(self.B) for e in new)], dim=1)
        deltas = [zero if e.bias is None else e.bias.to(zero) for e in new]
        self.delta_bias = torch.cat([self.delta_bias, *(d[None] for d in deltas)])
        self.task_of_rank = torch.cat([self.task_of_rank, *owner])
        self._has_delta_bias = bool(self.delta_bias.any())

    def share(self, sharing: Tensor | None) -> None:
        """Lets experts stand for others: the gates are ``g M`` with M (T, T). None: each has its own."""
        # What gates decide in; a gate that somebody else computes has no tensors of its own to ask.
        wide = torch.promote_types(self.A.dtype, torch.float32)
        self.sharing = None if sharing is None else sharing.to(self.A.device, wide)

    def forward(self, x: Tensor) -> Tensor:
        """(…, d_in) -> (…, d_out)."""
        if self.tasks == 0:
            plain: Tensor = self.linear(x)
            return plain
        gates = self.gate.of(x, self.pool)
        gates = gates if self.sharing is None else gates @ self.sharing
        used = None
        if not self.selection.keeps_all(self.tasks):
            if torch.compiler.is_compiling():
                # Which experts a batch uses is data, and a traced model has one way for all data.
                gates = self.selection.kept(gates)
            else:
                gates, used = self.selection(gates)
        gates = gates.to(x.dtype)
        # One gate per sample, repeated over the ranks of its expert and broadcast over the tokens.
        per_sample = (*x.shape[: min(x.dim() - 1, 1)], *(1,) * (x.dim() - 2))
        y: Tensor
        if self._one_weight_is_cheaper(x, gates):
            bias: Any = self.linear.bias
            y = linear(x, self._merged(gates[0]), bias)
        elif used is not None and len(gates):
            y = self._by_expert(x.reshape(len(gates), -1, x.shape[-1]), used).reshape(*x.shape[:-1], -1)
        else:
            per_rank = gates.index_select(1, self.task_of_rank).reshape(*per_sample, len(self.A))
            y = self.linear(x) + linear(linear(x, self.A) * per_rank, self.B)
        if self._has_delta_bias:
            y = y + (gates @ self.delta_bias).reshape(*per_sample, len(self.B))
        return y

    def _one_weight_is_cheaper(self, x: Tensor, gates: Tensor) -> bool:
        # A traced model serves batches of any size; a weight that accelerate keeps elsewhere is its Linear's.
        weight = self.linear.get_parameter("weight")
        if self.gate.reduction != "batch" or torch.compiler.is_compiling() or weight.device != x.device:
            return False
        tokens, ranks, (d_out, d_in) = x.numel() // x.shape[-1], len(self.A), (len(self.B), x.shape[-1])
        branch, merged = tokens * ranks * (d_in + d_out), ranks * d_in * d_out
        if not gates.requires_grad:
            return branch > merged
        # A gradient costs either as much again, and the one weight its own.
        return 2 * branch > 2 * merged + tokens * d_in * d_out

    def _merged(self, gates: Tensor) -> Tensor:
        """``W0 + Σ g_i B_i A_i`` (d_out, d_in) for the gates (T,) of a batch."""
        weight: Tensor = self.linear.get_parameter("weight")
        weight = weight.mT if is_transposed(self.linear) else weight
        return torch.addmm(weight, self.B * gates.index_select(0, self.task_of_rank), self.A)

    def _by_expert(self, x: Tensor, used: Iterable[UsedExpert]) -> Tensor:
        """(N, tokens, d_in) -> (N, tokens, d_out); the samples that use an expert pass it together."""
        y: Tensor = self.linear(x)
        ends = torch.bincount(self.task_of_rank, minlength=self.tasks).cumsum(0).tolist()
        for task, samples, gates in used:
            own = slice(ends[task - 1] if task else 0, ends[task])
            mine = x if samples is None else x.index_select(0, samples)
            inside = linear(mine, self.A[own]) * gates.to(x.dtype)
            if samples is None:
                y.view(-1, len(self.B)).addmm_(inside.flatten(0, 1), self.B[:, own].mT)
            else:
                y.index_add_(0, samples, linear(inside, self.B[:, own]))
        return y
