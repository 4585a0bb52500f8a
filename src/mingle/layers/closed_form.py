"""Routers whose weights are solved for instead of trained: what they read, and what they make of it.

Shapes: N samples; T tasks; x (N, …, d) an input, its middle axes are tokens; x̃ (N, d̃) what is read of it.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, one_hot

from mingle.layers.gate import Gate, PooledInput
from mingle.layers.mixture import MixtureLinear
from mingle.layers.norm import MixtureNorm
from mingle.layers.router import SharedGate, spread

RouterFeatures = Literal["mean", "mean+std", "mean+std+first"]
RouterForm = Literal["softmax", "top_k", "raw"]


class Reading(NamedTuple):
    """``x̃ = [mean over tokens, standard deviation over tokens, first token, 1]``, or without the last parts.

    Every token is brought to mean 0 and variance 1 first, so that no depth and no outlier outweighs the rest.
    """

    features: RouterFeatures = "mean+std+first"

    def __call__(self, hidden: Sequence[Tensor], pool: PooledInput) -> Tensor:
        """L tensors (N, …, d) -> x̃ (N, d̃), ``d̃ = L·features·d + 1``.

        ``pool`` knows which tokens count, samples that are cut into rows, and texts that are continued.
        """
        if pool.held is not None and "router" in pool.held:
            return pool.held["router"]
        # Blocks may be on devices of their own.
        parts = [part.to(hidden[-1].device) for x in hidden for part in self._parts(x, pool)]
        read = torch.cat([*parts, parts[0].new_ones(len(parts[0]), 1)], dim=1)
        read = read if pool.samples is None else read[:: len(read) // pool.samples]
        if pool.held is not None:
            pool.held["router"] = read
        return read

    def _parts(self, x: Tensor, pool: PooledInput) -> list[Tensor]:
        wide = layer_norm(x.to(torch.promote_types(x.dtype, torch.float32)), x.shape[-1:])
        parts = [pool.mean(wide)]
        if self.features != "mean":
            parts.append((pool.mean(wide * wide) - parts[0] ** 2).clamp_min(0).sqrt())
        if self.features == "mean+std+first":
            parts.append(pool.first(wide))
        return parts


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
    """``g = decision(W x̃) C`` of a Linear's own input."""

    shared: Tensor | None

    def __init__(
        self, weight: Tensor | None, reading: Reading, decision: Decision, confusion: Tensor | None = None
    ) -> None:
        """``weight`` (T, d̃); None while there is none: the one gate is 1.

        ``confusion`` (T, T): C with other row sums; None: C = I.
        """
        super().__init__(0)
        shared = None if confusion is None else confusion / confusion.sum(dim=1, keepdim=True)
        self.register_buffer("shared", shared)
        self.solved, self.reading, self.decision = weight is not None, reading, decision
        if weight is not None:
            self.weight = weight

    def of(self, x: Tensor, pool: PooledInput) -> Tensor:
        """X (N, …, d) -> gates (N, T)."""
        return spread(self.reduced(self.of_samples([x], pool)), x)

    def of_samples(self, hidden: Sequence[Tensor], pool: PooledInput) -> Tensor:
        """One row for every sample, in how many rows ever it is cut."""
        gates: Tensor = self(self.reading(hidden, pool))
        return gates

    def forward(self, read: Tensor) -> Tensor:
        """x̃ (N, d̃) -> gates (N, T)."""
        if not self.solved:
            return read.new_ones(len(read), 1)
        newest = [] if self.new_weight is None else [self.new_weight[None]]
        gates = self.decision(read @ torch.cat([self.weight, *newest]).mT.to(read.dtype))
        return gates if self.shared is None else gates @ self.shared.to(gates.dtype)

    def open(self) -> None:
        """Makes the newest row trainable, until ``freeze()``. Its bias is the row's last entry."""
        row, self.weight = self.weight[-1], self.weight[:-1]
        self.append(row, row.new_zeros(()), trainable=True)


class ClosedFormRouter(nn.Module):
    """``g = decision(W x̃)`` of the input of a module, the reader, for Linears inside that hold ``gate``."""

    def __init__(self, solved: ClosedFormGate, pool: PooledInput) -> None:
        super().__init__()
        self.solved, self.gate = solved, SharedGate()
        self.pool = pool

    def serve(self, reader: nn.Module) -> None:
        """From now on computes the gates whenever ``reader`` is about to run."""
        reader.add_module("closed_form_router", self)
        reader.register_forward_pre_hook(self._before, with_kwargs=True)

    def forward(self, *hidden: Tensor) -> Tensor:
        """(N, …, d) each -> gates (N, T)."""
        return self.solved.of_samples(hidden, self.pool)

    def input_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """What is read of a call of the reader."""
        return [args[0] if args else kwargs["hidden_states"]]

    def _before(self, reader: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del reader
        held = self.pool.held
        if held is not None and "router" in held:
            # A text that is continued keeps the gates of its beginning.
            self.gate.values = self.solved(held["router"])
        else:
            self.gate.values = self(*self.input_of(args, kwargs))


class StemRouter(ClosedFormRouter):
    """``g = decision(W x̃)`` of what the first blocks of the model, which have no experts, make of an input.

    The reader is the block after them: nothing is computed twice.
    """

    def __init__(self, solved: ClosedFormGate, pool: PooledInput, read: Sequence[nn.Module]) -> None:
        """``read``: the blocks whose outputs are read, in the order in which they run."""
        super().__init__(solved, pool)
        self._seen = dict[int, Tensor]()
        for place, block in enumerate(read):
            block.register_forward_hook(partial(self._see, place))

    def input_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """(N, S, d) each: the outputs of the blocks that are read."""
        del args, kwargs
        seen, self._seen = self._seen, {}
        return [seen[place] for place in sorted(seen)]

    def _see(self, place: int, block: nn.Module, given: object, found: Tensor | tuple[Tensor, ...]) -> None:
        del block, given
        self._seen[place] = found if isinstance(found, Tensor) else found[0]


class TrunkRouter(StemRouter):
    """``g = decision(W x̃)`` of what the first blocks of the frozen base make of an input.

    Experts that are added do not change what it reads; a prediction pays for these blocks twice.
    """

    def __init__(
        self, solved: ClosedFormGate, pool: PooledInput, trunk: nn.Module, read: Sequence[nn.Module]
    ) -> None:
        """``trunk``: see `trunk_of`; ``read``: those of its blocks whose outputs are read."""
        super().__init__(solved, pool, read)
        # Its parts belong to the model, which would otherwise have them under two names.
        self._trunk = [trunk]

    @torch.no_grad()
    def input_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """(N, S, d) each: the outputs of the blocks that are read, on the inputs of the whole stack."""
        # What a cache holds is of the stack.
        fresh = {"past_key_values": None, "use_cache": False}
        self._trunk[0](*args, **kwargs | {name: fresh[name] for name in fresh if name in kwargs})
        return super().input_of(args, kwargs)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        # Containers of the trunk may hold buffers of their own.
        self._trunk[0]._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]


def trunk_of(stack: nn.Module, blocks: str, depth: int) -> nn.Module:
    """The first ``depth`` of a stack's blocks, a ModuleList called ``blocks``, without their experts.

    Only the blocks, the modules in them that have parts, and modules around experts are copied; all others,
    and all weights, are the stack's own. So what records attention weights does not see the trunk run.
    """
    numbered = stack.get_submodule(blocks).children()
    copied = {part for block in numbered for part in block.modules() if list(part.children())}
    own: dict[int, Any] = {id(tensor): tensor for tensor in chain(stack.parameters(), stack.buffers())}
    for module in stack.modules():
        if isinstance(module, MixtureLinear):
            own[id(module)] = module.linear
        elif isinstance(module, MixtureNorm):
            own[id(module)] = module.norm
        elif module not in copied and not any(
            isinstance(inside, MixtureLinear | MixtureNorm) for inside in module.modules()
        ):
            own[id(module)] = module
    trunk = copy.deepcopy(stack, own)
    trunk.set_submodule(blocks, nn.ModuleList(list(trunk.get_submodule(blocks).children())[:depth]))
    return trunk
