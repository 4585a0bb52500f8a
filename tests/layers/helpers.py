"""A mixture and its dense counterpart with the same random experts and gates."""

import torch
from torch import nn

from mingle.layers import LowRankExpert, MixtureLinear, PooledInput

from .. import naive

D_IN, D_OUT, RANKS = 6, 5, (2, 3, 1)


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(bias=True, dtype=torch.float64, seed=0, d_in=D_IN, d_out=D_OUT):
    layer = nn.Linear(d_in, d_out, bias=bias, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(draw(seed, d_out, d_in))
        if bias:
            layer.bias.copy_(draw(seed + 1, d_out))
    return layer


def pair(
    *,
    bias=True,
    delta_bias=False,
    reduction="sample",
    trainable=False,
    dtype=torch.float64,
    pool=None,
    ranks=RANKS,
    seed=0,
):
    """(MixtureLinear, naive.DenseMixture) that should compute the same."""
    plain = linear(bias, dtype, seed)
    dense = naive.DenseMixture(plain.weight.detach().clone(), plain.bias, reduction)
    mixture = MixtureLinear(plain, pool or PooledInput(), reduction)
    experts = []
    for i, rank in enumerate(ranks):
        at = seed + 10 * (i + 1)
        A, B, w, c = draw(at, rank, D_IN), draw(at + 1, D_OUT, rank), draw(at + 2, D_IN), draw(at + 3)
        # The second expert has no delta of its bias, as when a checkpoint brings none.
        delta = draw(at + 4, D_OUT) if delta_bias and i != 1 else None
        A, B, w, c, delta = (t if t is None else t.to(dtype) for t in (A, B, w, c, delta))
        dense.add(A, B, w, c, delta)
        experts.append(LowRankExpert(A, B, delta))
        mixture.gate.append(w, c, trainable=trainable and i == len(ranks) - 1)
    mixture.extend(experts)
    return mixture, dense
