"""The released method written down plainly: dense matrices, full SVDs, one explicit layer after the other.

Only the formulas of the method page; no code of the library. Works on a two-layer gated network that the
parity test builds from the library's own model, in float64.
"""

import torch
from torch.nn.functional import log_softmax, softmax


def effective_rank(matrix):
    """int(exp(H(S / sum S))) from a full SVD."""
    s = torch.linalg.svdvals(matrix)
    s = s[s > 1e-12 * s[0]]
    p = s / s.sum()
    return int(torch.exp(-(p * p.log()).sum()) + 1e-9)


def expert(delta, previous, rank):
    """Block projection with full U and V, then a truncated full SVD: (B, A)."""
    if previous is not None:
        U, S, Vh = torch.linalg.svd(previous, full_matrices=True)
        a = effective_rank(previous)
        M = U.mT @ delta @ Vh.mT
        M[:a, :a] = 0
        delta = U @ M @ Vh
    U, S, Vh = torch.linalg.svd(delta, full_matrices=False)
    return U[:, :rank], S[:rank, None] * Vh[:rank]


class NaiveMixture(torch.nn.Module):
    """Dense experts, every gate averaged over tokens and over the batch; records its input."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = weight, bias
        self.deltas, self.w, self.c = [], [], []
        self.seen = []
        self.record = False

    def forward(self, x):
        if self.record:
            self.seen.append(x.detach().reshape(-1, x.shape[-1]))
        y = x @ self.weight.mT + self.bias
        for delta, w, c in zip(self.deltas, self.w, self.c, strict=True):
            gate = (x @ w + c).mean()
            y = y + gate * (x @ delta.mT)
        return y


def distill(model, layers, features, bases, teacher_logits, seeds, batches, classify, *, lr, beta, gamma):
    """Adam on the newest gates; the gradient is projected before Adam with the relaxed projector."""
    parameters = [p for layer in layers.values() for p in (layer.w[-1], layer.c[-1])]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    state = {name: torch.zeros(bases[name].shape[1], dtype=torch.float64) for name in layers}
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        student = classify(features(model, seeds[batch]))
        target = softmax(teacher_logits[batch] / 2, dim=-1)
        loss = -(target * log_softmax(student / 2, dim=-1)).sum(-1).mean()
        loss.backward()
        for name, layer in layers.items():
            U, g = bases[name], layer.w[-1].grad
            if U.shape[1] == 0:
                continue
            r = (g @ U).abs() / g.norm()
            state[name] = beta * state[name] + (1 - beta) * r
            layer.w[-1].grad = g - U @ (torch.exp(-gamma * state[name]) * (U.mT @ g))
        optimizer.step()
        losses.append(loss.item())
    return losses


def subspace(layer, basis, k):
    """QR of [U_old | top-k left singular vectors of the second moment of the recorded inputs]."""
    x = torch.cat(layer.seen)
    top = torch.linalg.svd(x.mT @ x).U[:, :k]
    return torch.linalg.qr(torch.cat([basis, top], dim=1)).Q
