"""Seeded matrices for property tests: shapes, ranks, precisions and scales are drawn, entries follow."""

import torch
from hypothesis import strategies as st

seeds = st.integers(0, 2**31)


def gaussian(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(seed, size, columns):
    return torch.linalg.qr(gaussian(seed, size, columns)).Q


def with_spectrum(seed, d_out, d_in, spectrum):
    """A dense matrix with exactly these non-zero singular values."""
    U, V = orthonormal(seed, d_out, len(spectrum)), orthonormal(seed + 1, d_in, len(spectrum))
    return U * torch.tensor(spectrum, dtype=torch.float64) @ V.mT


@st.composite
def matrices(draw, largest=14):
    """(d_out, d_in) of any rank, the zero matrix included; singular values within three decades."""
    d_out, d_in = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    rank = draw(st.integers(0, min(d_out, d_in)))
    spectrum = draw(st.lists(st.floats(1e-3, 1), min_size=rank, max_size=rank))
    return with_spectrum(draw(seeds), d_out, d_in, spectrum)


@st.composite
def factor_pairs(draw, largest=12):
    """Stacked factors B (d_out, R), A (R, d_in): R beyond the width, repeated and zero factors included."""
    d_out, d_in, R = draw(st.integers(1, largest)), draw(st.integers(1, largest)), draw(st.integers(1, 16))
    B, A = gaussian(draw(seeds), d_out, R), gaussian(draw(seeds), R, d_in)
    kind = draw(st.sampled_from(["plain", "repeated", "zero", "some zero"]))
    if kind == "repeated":
        B, A = torch.cat([B, B], dim=1), torch.cat([A, A])
    if kind == "zero":
        B, A = torch.zeros_like(B), torch.zeros_like(A)
    if kind == "some zero":
        A[: R // 2] = 0
    return B, A
