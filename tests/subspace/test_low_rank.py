"""Factorisations against plain dense ones, for any shape, rank, precision and scale."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from mingle.subspace import effective_rank, numerical_rank, polar, svd_of_factors, truncated_svd

from .. import naive
from .strategies import factor_pairs, gaussian, matrices, orthonormal, seeds, with_spectrum

PRECISION = {torch.float32: 2e-6, torch.float64: 1e-9}


def dense(factors):
    return (factors.U.double() * factors.S.double()) @ factors.V.double().mT


def assert_orthonormal(columns, real, tolerance):
    """Orthonormal where the singular value is real, zero where it is not."""
    expected = torch.diag(real.double())
    torch.testing.assert_close(columns.double().mT @ columns.double(), expected, atol=tolerance, rtol=0)


@given(
    matrices(),
    st.integers(1, 16),
    st.sampled_from(list(PRECISION)),
    st.sampled_from([1.0, 1e-20, 1e20, 1e-3]),
)
def test_truncated_svd_is_the_best_approximation(matrix, rank, dtype, scale):
    matrix = (matrix * scale).to(dtype)
    factors = truncated_svd(matrix, rank)
    keep = min(rank, *matrix.shape)
    assert [tuple(f.shape) for f in factors] == [(matrix.shape[0], keep), (keep,), (matrix.shape[1], keep)]
    assert {f.dtype for f in factors} == {dtype}
    exact = torch.linalg.svdvals(matrix.double())
    size, tolerance = float(exact[0]), PRECISION[dtype]
    torch.testing.assert_close(factors.S.double(), exact[:keep], atol=tolerance * size, rtol=0)
    # Eckart–Young: no rank-r matrix is nearer than the tail of the spectrum.
    error = torch.linalg.norm(matrix.double() - dense(factors))
    torch.testing.assert_close(error, exact[keep:].norm(), atol=3 * tolerance * size, rtol=tolerance)


@given(matrices(), st.integers(1, 16))
def test_truncated_svd_has_orthonormal_columns_and_zeros_beyond_the_rank(matrix, rank):
    U, S, V = truncated_svd(matrix, rank)
    true_rank = int(torch.linalg.matrix_rank(matrix)) if matrix.any() else 0
    real = torch.arange(len(S)) < true_rank
    assert torch.equal(S > 0, real)
    assert bool((S.diff() <= 1e-9 * S.sum()).all())
    # Three decades of singular values squared leave this much of float64's sixteen digits.
    assert_orthonormal(U, real, 1e-8)
    assert_orthonormal(V, real, 1e-8)


@given(matrices(), st.integers(1, 16))
def test_truncated_svd_of_the_transpose_swaps_the_sides(matrix, rank):
    one, two = truncated_svd(matrix, rank), truncated_svd(matrix.mT, rank)
    torch.testing.assert_close(one.S, two.S, atol=1e-9, rtol=0)
    # Where singular values are tied at the cut, either choice is right; the error is the same.
    errors = [torch.linalg.norm(m - dense(f)) for m, f in ((matrix, one), (matrix.mT, two))]
    torch.testing.assert_close(errors[0], errors[1], atol=1e-8, rtol=0)


# --- wide matrices, in float32 where that is exact enough

N = 544
SPECTRA = {
    "flat": [1.0] * N,
    "power law": [(i + 1) ** -0.6 for i in range(N)],
    "steep": [0.9**i for i in range(N)],
    "low rank": [1.0, 0.5, 0.25],
    "zero": [],
}


def wide(spectrum, shape):
    """With exactly these singular values, fast."""
    return with_spectrum(3, *shape, spectrum) if spectrum else torch.zeros(shape, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(N, N), (N + 60, N), (N, N + 60)])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_float32_guess_leaves_no_error_of_its_own(spectrum, shape, scale):
    exact = wide(SPECTRA[spectrum], shape)
    matrix = (exact * scale).float()
    found = truncated_svd(matrix, 8)
    assert {part.dtype for part in found} == {torch.float32}
    singular = torch.tensor([*SPECTRA[spectrum][:8], *[0.0] * 8][:8], dtype=torch.float64)
    torch.testing.assert_close(found.S.double() / scale, singular, atol=2e-6, rtol=0)
    real = found.S > 0
    assert torch.equal(real, singular > 0)
    assert_orthonormal(found.U, real, 2e-6)
    assert_orthonormal(found.V, real, 2e-6)
    error = torch.linalg.norm(exact - dense(found) / scale)
    best = torch.tensor(SPECTRA[spectrum][8:], dtype=torch.float64).norm()
    torch.testing.assert_close(error, best, atol=1e-5, rtol=1e-6)
    if spectrum in ("power law", "steep"):
        slow = truncated_svd(matrix.double(), 8)
        torch.testing.assert_close(dense(found) / scale, dense(slow) / scale, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("ranks", "kind"), [(40, "plain"), (40, "repeated"), (N + 9, "plain"), (40, "zero")])
def test_svd_of_wide_factors_is_the_svd_of_their_product(ranks, kind):
    B, A = orthonormal(1, N + 30, ranks) if ranks < N else gaussian(1, N + 30, ranks), gaussian(2, ranks, N)
    if kind == "repeated":
        B, A = torch.cat([B, B], dim=1), torch.cat([A, A])
    if kind == "zero":
        A = A * 0
    U, S, V = svd_of_factors(B, A)
    product = B @ A
    size = float(torch.linalg.norm(product)) or 1.0
    torch.testing.assert_close(torch.linalg.svdvals(product)[: len(S)], S, atol=1e-7 * size, rtol=0)
    torch.testing.assert_close(U * S @ V.mT, product, atol=1e-9 * size, rtol=0)
    real = torch.arange(len(S)) < numerical_rank(S)
    assert int(real.sum()) == min(ranks, N) * (kind != "zero")
    assert_orthonormal(U[:, real], real[real], 1e-9)
    assert_orthonormal(V[:, real], real[real], 1e-9)


def test_truncated_svd_gives_the_same_bits_twice():
    matrix = gaussian(1, 30, 20)
    first, second = truncated_svd(matrix, 7), truncated_svd(matrix.clone(), 7)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@given(factor_pairs(), st.sampled_from([1.0, 1e-12, 1e12]))
def test_svd_of_factors_is_the_svd_of_their_product(pair, scale):
    B, A = pair[0] * scale, pair[1]
    U, S, V = svd_of_factors(B, A)
    product = B @ A
    keep = min(A.shape[0], *product.shape)
    assert [tuple(t.shape) for t in (U, S, V)] == [
        (product.shape[0], keep),
        (keep,),
        (product.shape[1], keep),
    ]
    size = float(torch.linalg.norm(B) * torch.linalg.norm(A))
    torch.testing.assert_close(torch.linalg.svdvals(product)[:keep], S, atol=1e-13 * size, rtol=0)
    torch.testing.assert_close(U * S @ V.mT, product, atol=1e-13 * size, rtol=0)
    everywhere = torch.ones(keep, dtype=torch.bool)
    assert_orthonormal(U, everywhere, 1e-12)
    assert_orthonormal(V, everywhere, 1e-12)


@given(factor_pairs())
def test_numerical_rank_counts_what_a_dense_rank_counts(pair):
    B, A = pair
    exact = torch.linalg.svdvals(B @ A)
    # A random matrix may be nearly singular; such a case has no right answer.
    assume(not bool(((exact > 1e-15 * exact[0]) & (exact < 1e-8 * exact[0])).any()))
    assert numerical_rank(svd_of_factors(B, A).S) == int((exact > 1e-10 * exact[0]).sum())


@given(st.integers(1, 200), st.floats(1e-30, 1e30), st.sampled_from(list(PRECISION)))
def test_equal_values_have_full_effective_rank(n, value, dtype):
    assert effective_rank(torch.full((n,), value, dtype=dtype)) == n


@pytest.mark.parametrize("n", [0, 1, 7])
def test_zero_has_effective_rank_zero(n):
    assert effective_rank(torch.zeros(n)) == 0
    assert numerical_rank(torch.zeros(n)) == 0


spectra = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40)


@given(spectra, st.integers(0, 9), st.sampled_from([2.0**-60, 1.0, 2.0**60]), st.randoms())
def test_effective_rank_is_the_exponential_of_the_entropy(values, zeros, scale, random):
    expected = naive.entropy_rank(values)
    assume(abs(expected - round(expected)) > 1e-6 or len(values) == 1)
    shuffled = [scale * v for v in values] + [0.0] * zeros
    random.shuffle(shuffled)
    # 0·log 0 = 0: zeros change nothing; neither does a common factor, nor the order.
    found = effective_rank(torch.tensor(shuffled, dtype=torch.float64))
    assert found == math.floor(expected + 1e-9)
    assert 1 <= found <= len(values)


@given(st.integers(1, 5), st.integers(6, 40), seeds)
def test_effective_rank_ignores_rounding_noise_of_the_product(rank, width, seed):
    spectrum = [1.0] * rank
    singular = svd_of_factors(with_spectrum(seed, width, rank, spectrum), gaussian(seed + 2, rank, width)).S
    noisy = torch.cat([singular, singular.new_full((width,), 1e-16) * singular[0]])
    assert effective_rank(noisy) == effective_rank(singular) <= rank


@given(matrices(), st.sampled_from(list(PRECISION)))
def test_polar_is_the_nearest_isometry_on_what_the_matrix_has(matrix, dtype):
    matrix = matrix.to(dtype)
    isometry, singular = polar(matrix)
    assert isometry.dtype == singular.dtype == dtype
    exact, Q = matrix.double(), isometry.double()
    torch.testing.assert_close(singular.double(), torch.linalg.svdvals(exact), atol=PRECISION[dtype], rtol=0)
    # M = Q H with H = Qᵀ M symmetric and positive semidefinite: the polar decomposition.
    H = Q.mT @ exact
    torch.testing.assert_close(H, H.mT, atol=1e-5, rtol=0)
    torch.testing.assert_close(Q @ H, exact, atol=1e-5, rtol=0)
    assert float(torch.linalg.eigvalsh((H + H.mT) / 2).min()) > -1e-5
    kept = torch.linalg.svdvals(Q)
    assert ((kept - 1).abs().minimum(kept.abs()) < 1e-5).all()
    assert int((kept > 0.5).sum()) == numerical_rank(torch.linalg.svdvals(exact))
