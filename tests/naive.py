"""The formulas of the method page, written down plainly: dense matrices, full SVDs, one sample at a time.

Slow on purpose, and no code of the library. Tests compare the library with these.
"""

import math

import torch
from torch import nn


def entropy_rank(singular_values):
    """exp(H(S / ΣS)) with 0·log 0 = 0, not truncated."""
    total = sum(singular_values)
    if total == 0:
        return 0.0
    shares = [s / total for s in singular_values]
    return math.exp(-sum(p * math.log(p) for p in shares if p > 0))


def projected(delta, previous, kind, a):
    """D' = U M' Vᵀ with FULL U and V of the dense sum of earlier experts, M' = M with entries zeroed."""
    U, S, Vh = torch.linalg.svd(previous, full_matrices=True)
    M = U.mT @ delta @ Vh.mT
    rank = int((S / S[0] > 1e-10).sum())
    if kind.startswith("block"):
        M[:a, :a] = 0
    if kind.startswith("complement"):
        M[:a, :] = 0
        M[:, :a] = 0
    if kind.endswith("+diagonal"):
        for i in range(rank):
            M[i, i] = 0
    return U @ M @ Vh


def relaxed(gradients, basis, beta, gamma):
    """Each gradient row without its protected part, after the running interference, number by number."""
    S = [0.0] * basis.shape[1]
    results, history = [], []
    for gradient in gradients:
        result = gradient.clone()
        for p in range(basis.shape[1]):
            inside = float(gradient @ basis[:, p])
            S[p] = beta * S[p] + (1 - beta) * abs(inside) / float(gradient.norm())
            result = result - math.exp(-gamma * S[p]) * inside * basis[:, p]
        results.append(result)
        history.append(list(S))
    return torch.stack(results), torch.tensor(history, dtype=gradients.dtype)


def kept_gates(row, strongest, threshold):
    """The gates (T,) of one sample, one after the other: 0 below the threshold or behind stronger ones."""
    sizes = row.detach().abs().tolist()
    kept = torch.zeros_like(row)
    for task, size in enumerate(sizes):
        stronger = sum(other > size for other in sizes)
        if size >= threshold and (strongest is None or stronger < strongest):
            kept[task] = 1
    return kept * row


class DenseMixture(nn.Module):
    """W0 x + b0 + Σ g_i (B_i A_i x + δb_i) with dense B_i A_i, every sample and every token by itself."""

    def __init__(self, weight, bias, reduction="sample"):
        super().__init__()
        self.weight, self.bias, self.reduction = weight, bias, reduction
        self.experts = []

    def add(self, A, B, gate_weight, gate_bias, delta_bias=None):
        self.experts.append((B @ A, gate_weight, gate_bias, delta_bias))

    def gates(self, x, mask=None):
        """x (N, tokens, d) -> (N, T): the gate of every token first, then the mean over real tokens."""
        rows = []
        for n, sample in enumerate(x):
            real = [i for i in range(len(sample)) if mask is None or bool(mask[n, i])]
            row = [sum(sample[i] @ w + c for i in real) / len(real) for _, w, c, _ in self.experts]
            rows.append(torch.stack(row))
        gates = torch.stack(rows)
        return gates.mean(0).expand_as(gates) if self.reduction == "batch" else gates

    def forward(self, x, mask=None):
        tokens = x.reshape(1, 1, -1) if x.dim() == 1 else x.reshape(len(x), -1, x.shape[-1])
        gates = self.gates(tokens, mask)
        outputs = []
        for n, sample in enumerate(tokens):
            for token in sample:
                y = self.weight @ token
                y = y if self.bias is None else y + self.bias
                for g, (dense, _, _, delta_bias) in zip(gates[n], self.experts, strict=True):
                    y = y + g * (dense @ token)
                    y = y if delta_bias is None else y + g * delta_bias
                outputs.append(y)
        return torch.stack(outputs).reshape(*x.shape[:-1], -1)


def same_parameters(model, tensors):
    """A model of the same class whose parameters hold these tensors, by plain copying."""
    state = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].data = tensor.clone()
    return model
