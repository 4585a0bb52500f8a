"""The released method written down plainly: full SVDs, a dense ``B A`` for every expert in every forward
pass, the teacher asked at every step, all features kept in buffers.

Only the formulas of the method; no code of the library. It is the yardstick of `cost.py`, and in float64 the
library has to give the same numbers (tests/golden).
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, softmax


def effective_rank(singular: Tensor) -> int:
    """``⌊exp(H(S / ΣS))⌋`` of the singular values that are not rounding noise."""
    noise = len(singular) * torch.finfo(singular.dtype).eps * singular[0]
    share = singular[singular > noise].double()
    share = share / share.sum()
    return int(torch.exp(-(share * share.log()).sum()) + 1e-9)


def expert(delta: Tensor, earlier: Sequence[tuple[Tensor, Tensor]], rank: int) -> tuple[Tensor, Tensor, int]:
    """B, A and the effective rank: block projection with full U and V, then a truncated full SVD."""
    a = 0
    if earlier:
        left, singular, right = torch.linalg.svd(dense_sum(earlier), full_matrices=True)
        a = effective_rank(singular)
        inside = left.mT @ delta @ right.mT
        inside[:a, :a] = 0
        delta = left @ inside @ right
    left, singular, right = torch.linalg.svd(delta, full_matrices=False)
    return left[:, :rank], singular[:rank, None] * right[:rank], a


def dense_sum(experts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """``Σ B A``."""
    return torch.stack([B @ A for B, A in experts]).sum(0)


class PlainMixture(nn.Module):
    """``W0 x + b0 + Σ g_i B_i A_i x``; a gate of every token, then the mean; one dense weight for each gate.

    ``reduction="batch"``: gates are averaged over the batch too. While ``record`` is on, inputs are kept.
    """

    def __init__(self, weight: Tensor, bias: Tensor, reduction: str = "batch") -> None:
        super().__init__()
        self.weight, self.bias, self.reduction = weight, bias, reduction
        self.experts: list[tuple[Tensor, Tensor]] = []
        self.w: list[Tensor] = []
        self.c: list[Tensor] = []
        self.seen: list[Tensor] = []
        self.record = False

    def forward(self, x: Tensor) -> Tensor:
        """(N, tokens, d_in) -> (N, tokens, d_out)."""
        if self.record:
            self.seen.append(x.detach().reshape(-1, x.shape[-1]))
        gates = torch.stack([x @ w + c for w, c in zip(self.w, self.c, strict=True)], dim=-1).mean(1)
        if self.reduction == "batch":
            return x @ self.merged(gates.mean(0)).mT + self.bias
        return torch.stack(
            [sample @ self.merged(g).mT + self.bias for sample, g in zip(x, gates, strict=True)]
        )

    def merged(self, gates: Tensor) -> Tensor:
        """``W0 + Σ g_i B_i A_i``."""
        weight = self.weight
        for g, (B, A) in zip(gates, self.experts, strict=True):
            weight = weight + g * (B @ A)
        return weight


class Distillation:
    """Adam on the newest gates, the gradient projected before it with the relaxed projector."""

    def __init__(
        self,
        layers: Mapping[str, PlainMixture],
        bases: Mapping[str, Tensor],
        student: Callable[[Tensor], Tensor],
        teacher: Callable[[Tensor], Tensor],
        lr: float,
        *,
        beta: float = 0.99,
        gamma: float = 1.0,
    ) -> None:
        self.layers, self.bases, self.student, self.teacher = layers, bases, student, teacher
        self.beta, self.gamma = beta, gamma
        self.optimizer = torch.optim.Adam([p for m in layers.values() for p in (m.w[-1], m.c[-1])], lr=lr)
        self.interference = {name: basis.new_zeros(basis.shape[1]) for name, basis in bases.items()}

    def step(self, pixels: Tensor) -> float:
        """The loss on a batch, before the step that it leads to."""
        self.optimizer.zero_grad()
        with torch.no_grad():
            target = softmax(self.teacher(pixels) / 2, dim=-1)
        loss = -(target * log_softmax(self.student(pixels) / 2, dim=-1)).sum(-1).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        for name, layer in self.layers.items():
            basis, g = self.bases[name], layer.w[-1].grad
            if basis.shape[1] and g is not None:
                ratio = (g @ basis).abs() / g.norm()
                seen = self.beta * self.interference[name] + (1 - self.beta) * ratio
                self.interference[name] = seen
                layer.w[-1].grad = g - basis @ (torch.exp(-self.gamma * seen) * (basis.mT @ g))
        self.optimizer.step()
        return loss.item()


def subspace(features: Sequence[Tensor], basis: Tensor, k: int = 3) -> Tensor:
    """QR of ``[U_old | top k left singular vectors of the second moment]`` of the recorded inputs."""
    x = torch.cat(list(features))
    top = torch.linalg.svd(x.mT @ x).U[:, :k]
    return torch.linalg.qr(torch.cat([basis, top], dim=1)).Q
