"""Routers whose weights are solved for instead of trained: what they read, and what they make of it.

Shapes: N samples; T tasks; x (N, …, d) an input, its middle axes are tokens; x̃ (N, d̃) what is read of it.
"""

import copy
from collections.abc import Callable
from itertools import chain
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from mingle.layers.gate import Gate, PooledInput
from mingle.layers.mixture import MixtureLinear
from mingle.layers.norm import MixtureNorm
from mingle.layers.router import SharedGate, spread

RouterFeatures = Literal["mean", "mean+std"]
RouterForm = Literal["softmax", "top_k", "raw"]


class Reading(NamedTuple):
    """``x̃ = [mean over tokens, standard deviation over tokens, 1]``, or without the deviation."""

    features: RouterFeatures = "mean"

    def __call__(self, x: Tensor, pool: PooledInput) -> Tensor:
        """(N, …, d) -> x̃ (N, d̃); ``pool`` knows which tokens count, and samples that are cut into rows."""
        mean = pool(x, "router")
        parts = [mean, mean.new_ones(len(mean), 1)]
        if self.features == "mean+std":
            wide = x.to(mean.dtype)
            variance = pool(wide * wide, "router squares") - mean * mean
            parts.insert(1, variance.clamp_min(0).sqrt())
        read = torch.cat(parts, dim=1)
        return read if pool.samples is None else read[:: len(read) // pool.samples]


class Decision(NamedTuple):
    """Gates of scores s (N, T): ``softmax(s / τ)``; that over the k largest alone; or s as it is."""

    form: RouterForm = "softmax"
    temperature: float = 0.1
    top: int = 1

    def __call__(self, scores: Tensor) -> Tensor:
        """(N, T) -> (N, T)."""
        if self.form == "raw":
            return scores
        if self.form == "top_k":
            kept = scores.topk(min(self.top, scores.shape[1]), dim=1).indices
            chosen = one_hot(kept, scores.shape[1]).sum(1).bool()
            scores = scores.masked_fill(~chosen, -torch.inf)
        return (scores / self.temperature).softmax(dim=1)


class ClosedFormGate(Gate):
    """``g = decision(W x̃)`` of a Linear's own input."""

    def __init__(self, weight: Tensor | None, reading: Reading, decision: Decision) -> None:
        """``weight`` (T, d̃); None while there is none: the one gate is 1."""
        super().__init__(0)
        self.solved, self.reading, self.decision = weight is not None, reading, decision
        if weight is not None:
            self.weight = weight

    def of(self, x: Tensor, pool: PooledInput) -> Tensor:
        """X (N, …, d) -> gates (N, T)."""
        return spread(self.reduced(self.of_samples(x, pool)), x, pool)

    def of_samples(self, x: Tensor, pool: PooledInput) -> Tensor:
        """One row for every sample, in how many rows ever it is cut."""
        read = self.reading(x, pool)
        if not self.solved:
            return read.new_ones(len(read), 1)
        newest = [] if self.new_weight is None else [self.new_weight[None]]
        return self.decision(read @ torch.cat([self.weight, *newest]).mT.to(read.dtype))

    def open(self) -> None:
        """Makes the newest row trainable, until ``freeze()``. Its bias is the row's last entry."""
        row, self.weight = self.weight[-1], self.weight[:-1]
        self.append(row, row.new_zeros(()), trainable=True)


class ClosedFormRouter(nn.Module):
    """``g = decision(W x̃)`` of the input of a module, the reader, for Linears inside that hold ``gate``."""

    def __init__(self, solved: ClosedFormGate, pool: PooledInput) -> None:
        super().__init__()
        self.solved, self.gate = solved, SharedGate(0)
        self.pool = pool

    def serve(self, reader: nn.Module) -> None:
        """From now on computes the gates whenever ``reader`` is about to run."""
        reader.add_module("closed_form_router", self)
        reader.register_forward_pre_hook(self._before, with_kwargs=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, …, d) -> gates (N, T)."""
        return self.solved.of_samples(x, self.pool)

    def input_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """What is read of a call of the reader."""
        x: Tensor = args[0] if args else kwargs["hidden_states"]
        return x

    def _before(self, reader: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del reader
        if self.pool.held is not None and "router" in self.pool.held:
            return  # A text that is continued keeps the gates of its beginning.
        self.gate.values = self(self.input_of(args, kwargs))


class TrunkRouter(ClosedFormRouter):
    """``g = decision(W x̃)`` of what the first blocks of the frozen base make of an input.

    Experts that are added do not change what it reads; a prediction pays for these blocks twice.
    """

    def __init__(self, solved: ClosedFormGate, pool: PooledInput, trunk: nn.Module) -> None:
        """``trunk``: see `trunk_of`."""
        super().__init__(solved, pool)
        # Its parts belong to the model, which would otherwise have them under two names.
        self._trunk = [trunk]

    @torch.no_grad()
    def input_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """(N, S, d): the last hidden states of the trunk on the inputs of the whole stack."""
        # What a cache holds is of the stack.
        fresh = {"past_key_values": None, "use_cache": False}
        found = self._trunk[0](*args, **kwargs | {name: fresh[name] for name in fresh if name in kwargs})
        hidden: Tensor = found if isinstance(found, Tensor) else found[0]
        return hidden

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        # Containers of the trunk may hold buffers of their own.
        self._trunk[0]._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]


def trunk_of(stack: nn.Module, blocks: str, depth: int) -> nn.Module:
    """The first ``depth`` of a stack's blocks, a ModuleList called ``blocks``, without their experts.

    Only modules around experts are copied; all others, and all weights, are the stack's own.
    """
    own: dict[int, Any] = {id(tensor): tensor for tensor in chain(stack.parameters(), stack.buffers())}
    for module in stack.modules():
        if isinstance(module, MixtureLinear):
            own[id(module)] = module.linear
        elif isinstance(module, MixtureNorm):
            own[id(module)] = module.norm
        elif not any(isinstance(inside, MixtureLinear | MixtureNorm) for inside in module.modules()):
            own[id(module)] = module
    trunk = copy.deepcopy(stack, own)
    trunk.set_submodule(blocks, nn.ModuleList(list(trunk.get_submodule(blocks).children())[:depth]))
    return trunk
