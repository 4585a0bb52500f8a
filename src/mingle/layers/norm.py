"""A LayerNorm with gated deltas of its two vectors.

Shapes: x (N, …, d) -> y (N, …, d); δw, δb (d,) per task; gates (N, T).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from mingle.layers.gate import Gate, PooledInput


class MixtureNorm(nn.Module):
    """``y = x̂ ∘ (w0 + Σ g_i δw_i) + b0 + Σ g_i δb_i`` with x̂ the normalised input.

    The gates are those of the Linear that reads y, evaluated on the mean of ``x̂ ∘ w0 + b0``.
    """

    delta_weight: Tensor
    delta_bias: Tensor

    def __init__(self, norm: nn.LayerNorm, pool: PooledInput, gate: Gate) -> None:
        super().__init__()
        self.norm = norm.requires_grad_(False)
        # In a tuple: pool and gate belong to the Linear and must not be registered twice.
        self._reader = (pool, gate)
        for name in ("delta_weight", "delta_bias"):
            self.register_buffer(name, norm.weight.new_zeros(0, norm.weight.numel()))

    def extend(self, deltas: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Adds ``(δw, δb)`` of further tasks, oldest first."""
        for weight, bias in deltas:
            self.delta_weight = torch.cat([self.delta_weight, weight.to(self.delta_weight)[None]])
            self.delta_bias = torch.cat([self.delta_bias, bias.to(self.delta_bias)[None]])

    def forward(self, x: Tensor) -> Tensor:
        """(N, …, d) -> (N, …, d)."""
        y: Tensor = self.norm(x)
        if len(self.delta_weight) == 0:
            return y
        pool, gate = self._reader
        gates: Tensor = gate(pool(y, "norm")).to(y.dtype)
        per_sample = (*x.shape[: min(x.dim() - 1, 1)], *(1,) * (x.dim() - 2), x.shape[-1])
        normalised = layer_norm(x, self.norm.normalized_shape, eps=self.norm.eps)
        weight, bias = ((gates @ delta).reshape(per_sample) for delta in (self.delta_weight, self.delta_bias))
        return y + normalised * weight + bias
