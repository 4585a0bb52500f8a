"""Transformers models with a linear head: how the head begins, and how a model and the base score."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

RIDGE, SCALE = 0.01, 10.0
Kwargs = dict[str, Tensor]


@torch.no_grad()
def begin_head(head: nn.Linear, features: Tensor, labels: Tensor) -> None:
    """Sets a head to SCALE times the ridge regression of one-hot labels (N,) on features (N, d).

    W = (F̃ᵀF̃/N + ρ·mean(diag)·I)⁻¹ F̃ᵀỸ/N, with centred F̃ and Ỹ, ρ = RIDGE, in float64.
    """
    rows, answers = features.double(), one_hot(labels, head.out_features).double()
    middle, prior = rows.mean(0), answers.mean(0)
    rows = rows - middle
    moment = rows.T @ rows / len(rows)
    ridge = RIDGE * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype)
    weight = torch.linalg.solve(moment + ridge, rows.T @ (answers - prior) / len(rows)).T
    head.weight.copy_(SCALE * weight)
    head.bias.copy_(SCALE * (prior - weight @ middle))


@torch.no_grad()
def features(model: nn.Module, head: nn.Linear, batches: Sequence[Kwargs]) -> Tensor:
    """What the head of a model reads: (N, d)."""
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        for batch in batches:
            model(**batch)
    finally:
        hook.remove()
    return torch.cat(seen)


@torch.no_grad()
def accuracy(forward: Callable[..., Tensor], batches: Sequence[Kwargs], labels: Tensor) -> float:
    """Share of samples whose largest logit is that of their label (N,)."""
    guesses = torch.cat([forward(**batch).argmax(-1) for batch in batches])
    return round((guesses == labels).float().mean().item(), 4)
