"""The input-dependent gate of a merged Linear.

Shapes: N samples; T tasks; x (N, …, d_in) the layer's input, its middle axes are tokens; x̄ (N, d_in).
"""

import weakref
from typing import Literal

import torch
from torch import Tensor, nn

GateReduction = Literal["sample", "batch"]


class PooledInput(nn.Module):
    """``x̄``: the mean of a layer's input over its tokens, shared by all Linears that read the same tensor.

    A tensor without token axes, (N, d_in) or (d_in,), is its own mean, whatever the mask. ``mask``
    (N, tokens), set by the backbone for the length of one forward pass, leaves padding tokens out. Pooling
    first and gating the mean is the same number as gating every token and averaging: the gate is linear.
    Inputs in half precision have their mean in float32.
    ``samples``, set like the mask: how many samples there are where each is cut into several rows, one after
    the other (windows of a picture); the mean is over all rows of a sample, and every row gets it.

    ``held``, set like ``mask``, is the memory of a text that is written token by token with a cache: means of
    its first pass, by reader, which hold for all further ones. A reader that is not in it is added.
    """

    samples: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self._mask: Tensor | None = None
        self.held: dict[str, Tensor] | None = None
        self._last: tuple[weakref.ref[Tensor], int, Tensor] | None = None

    @property
    def mask(self) -> Tensor | None:
        """Which tokens count: (N, tokens), or None for all of them."""
        return self._mask

    @mask.setter
    def mask(self, mask: Tensor | None) -> None:
        self._mask, self._last = mask, None

    def mask_of(self, x: Tensor) -> Tensor | None:
        """Which tokens of an input count; None for all of them, as of an input without token axes."""
        return self._mask if x.dim() > 2 else None

    def forward(self, x: Tensor, reader: str = "linear") -> Tensor:
        """(N, …, d_in) or (d_in,) -> (N, d_in). ``reader``: who asks, where others ask for another tensor."""
        if self.held is None:
            return self._pooled(x)
        if reader not in self.held:
            self.held[reader] = self._pooled(x)
        return self.held[reader]

    def _pooled(self, x: Tensor) -> Tensor:
        # An inference tensor has no version counter to tell an in-place change by; a mean of a leaf would
        # be reused after its graph was freed.
        # A traced tensor is no tensor of this pass, and must not outlive the trace.
        if (
            x.dim() <= 2
            or torch.compiler.is_compiling()
            or x.is_inference()
            or (x.is_leaf and x.requires_grad)
        ):
            return self.mean(x)
        last = self._last
        if last is not None and last[0]() is x and last[1] == x._version:
            pooled = last[2]
            if pooled.requires_grad == (x.requires_grad and torch.is_grad_enabled()):
                return pooled
        pooled = self.mean(x)
        self._last = (weakref.ref(x, self._forget), x._version, pooled)
        return pooled

    def mean(self, x: Tensor) -> Tensor:
        """(N, …, d_in) or (d_in,) -> (N, d_in), of this very tensor: nothing is held."""
        wide = _wide(x)
        if x.dim() <= 2:
            return x.reshape(-1, x.shape[-1]).to(wide)
        tokens = x.flatten(1, -2)
        if self.samples is not None and self.samples != x.shape[0]:
            rows = x.shape[0] // self.samples
            mean = tokens.reshape(self.samples, -1, x.shape[-1]).mean(dim=1, dtype=wide)
            return mean.repeat_interleave(rows, dim=0)
        if self.mask is None:
            return tokens.mean(dim=1, dtype=wide)
        weight = self.mask.reshape(x.shape[0], -1, 1).to(x.device, wide)
        return (tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)

    def first(self, x: Tensor) -> Tensor:
        """(N, …, d_in) or (d_in,) -> (N, d_in): the first token that counts of every row."""
        if x.dim() <= 2:
            return x.reshape(-1, x.shape[-1])
        tokens, mask = x.flatten(1, -2), self.mask_of(x)
        if mask is None:
            return tokens[:, 0]
        place = mask.reshape(len(x), -1).to(x.device, torch.int64).argmax(dim=1)
        return tokens.gather(1, place[:, None, None].expand(-1, 1, x.shape[-1]))[:, 0]

    def _forget(self, _: object) -> None:
        self._last = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_last": None, "held": None}


def _wide(x: Tensor) -> torch.dtype:
    """What a mean of x is computed in: its dtype, float32 for half precision."""
    return torch.promote_types(x.dtype, torch.float32)


class Gate(nn.Module):
    """``g_i(x) = w_i · x̄ + c_i``: one row per task, no softmax, negative values allowed.

    Rows of earlier tasks are buffers. The newest row is a parameter while it is being adapted, and
    becomes a buffer like the others with ``freeze()``. ``thaw()`` lets the earlier rows adapt with it.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self, width: int, *, reduction: GateReduction = "sample", dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.register_buffer("weight", torch.zeros(0, width, dtype=dtype))
        self.register_buffer("bias", torch.zeros(0, dtype=dtype))
        self.new_weight: nn.Parameter | None = None
        self.new_bias: nn.Parameter | None = None

    def append(self, weight: Tensor, bias: Tensor, *, trainable: bool = False) -> None:
        """Adds the row of one more task: weight (d_in,), bias () – frozen unless ``trainable``."""
        self.freeze()
        if trainable:
            self.new_weight = nn.Parameter(weight.to(self.weight).clone())
            self.new_bias = nn.Parameter(bias.to(self.bias).clone())
        else:
            self.weight = torch.cat([self.weight, weight.to(self.weight)[None]])
            self.bias = torch.cat([self.bias, bias.to(self.bias)[None]])

    def thaw(self) -> None:
        """Makes the rows of earlier tasks trainable, until ``freeze()``."""
        self.weight.requires_grad_()
        self.bias.requires_grad_()

    def trainable(self) -> list[Tensor]:
        """Weight and bias of what is being trained, in turn: earlier rows if thawed, then the newest row."""
        earlier = [self.weight, self.bias] if self.weight.requires_grad else []
        return earlier + [p for p in (self.new_weight, self.new_bias) if p is not None]

    def freeze(self) -> None:
        """Turns the rows that were trainable into frozen ones."""
        self.weight, self.bias = self.weight.detach(), self.bias.detach()
        if self.new_weight is not None and self.new_bias is not None:
            weight, bias = self.new_weight.detach(), self.new_bias.detach()
            self.new_weight = self.new_bias = None
            self.append(weight, bias)

    def of(self, x: Tensor, pool: PooledInput) -> Tensor:
        """The gates (N, T) of a layer's input (N, …, d_in)."""
        gates: Tensor = self(pool(x))
        return gates

    def forward(self, pooled: Tensor) -> Tensor:
        """x̄ (N, d_in) -> gates (N, T); with reduction ``batch`` every row is the mean over the batch."""
        gates = nn.functional.linear(pooled, self.weight, self.bias)
        if self.new_weight is not None and self.new_bias is not None:
            newest = pooled @ self.new_weight + self.new_bias
            gates = torch.cat([gates, newest[:, None]], dim=1)
        return self.reduced(gates)

    def reduced(self, gates: Tensor) -> Tensor:
        """Gates (N, T) as they are or, with reduction ``batch``, each the mean over the batch."""
        return gates.mean(dim=0, keepdim=True).expand_as(gates) if self.reduction == "batch" else gates


class SubspaceGate(Gate):
    """``s_i = ‖V_iᵀ x̄‖ / ‖x̄‖``, the cosine of x̄ to its projection on the input subspace of expert i.

    V_i are the rows of A_i at unit length; they are orthogonal, being right singular vectors. The gates are
    ``softmax(s / temperature)``, or without a temperature 1 for the largest s and 0 for the others. An expert
    without ranks, which others stand for, has the gate 0.
    """

    directions: Tensor
    owner: Tensor
    absent: Tensor

    def __init__(self, A: Tensor, task_of_rank: Tensor, temperature: float | None) -> None:
        """``A`` (R, d_in): the stacked factors of all experts; ``task_of_rank`` (R,): whose they are."""
        super().__init__(A.shape[1], dtype=_wide(A))
        self.temperature = temperature
        directions = nn.functional.normalize(A.to(self.weight), dim=1)
        self.register_buffer("directions", directions, persistent=False)
        tasks = int(task_of_rank.max()) + 1 if len(task_of_rank) else 0
        owner = (task_of_rank[:, None] == torch.arange(tasks)).to(directions)
        self.register_buffer("owner", owner, persistent=False)
        self.register_buffer("absent", ~owner.any(dim=0), persistent=False)

    def forward(self, pooled: Tensor) -> Tensor:
        """x̄ (N, d_in) -> gates (N, T)."""
        inside = (nn.functional.normalize(pooled, dim=1) @ self.directions.mT).square()
        scores = (inside @ self.owner).sqrt().masked_fill(self.absent, -torch.inf)
        if self.temperature is not None:
            return self.reduced((scores / self.temperature).softmax(dim=1))
        return self.reduced(nn.functional.one_hot(scores.argmax(dim=1), scores.shape[1]).to(scores.dtype))
