"""Second moments, protected bases and the projector against plain formulas."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mingle.subspace import NullSpaceProjector, SecondMoment, extend_basis
from mingle.subspace.null_space import DENSE_LIMIT, PANEL

from .. import naive
from .strategies import gaussian, orthonormal, seeds, with_spectrum

EXACT = {"atol": 1e-10, "rtol": 1e-10}


def moment_of(rows, augmented=False, mask=None):
    moment = SecondMoment(rows.shape[-1], augmented=augmented, dtype=rows.dtype)
    moment.add(rows, mask)
    return moment


def projection_onto(columns):
    return columns @ columns.mT


# --- second moment


@given(seeds, st.integers(1, 30), st.integers(1, 8), st.booleans(), st.data())
def test_streaming_equals_the_batch(seed, rows, width, augmented, data):
    x = gaussian(seed, rows, width)
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=4)))
    streamed = SecondMoment(width, augmented=augmented, dtype=x.dtype)
    for start, end in zip([0, *cuts], [*cuts, rows], strict=True):
        streamed.add(x[start:end])
    full = torch.cat([x, torch.ones(rows, 1, dtype=x.dtype)], dim=1) if augmented else x
    torch.testing.assert_close(streamed.matrix, full.mT @ full, **EXACT)
    assert streamed.count == rows


@pytest.mark.parametrize("augmented", [False, True])
def test_a_moment_in_panels_is_the_whole_matrix(augmented):
    x = gaussian(1, 30, 2 * PANEL + 5)
    full = torch.cat([x, torch.ones(30, 1, dtype=x.dtype)], dim=1) if augmented else x
    moment = SecondMoment(x.shape[1], augmented=augmented, dtype=x.dtype)
    moment.add(x[:10])
    moment.add(x[10:])
    torch.testing.assert_close(moment.matrix, full.mT @ full, **EXACT)
    assert torch.equal(moment.matrix, moment.matrix.mT)


@pytest.mark.parametrize("shape", [(6,), (5, 6), (3, 4, 6), (2, 3, 4, 6)])
def test_every_token_of_any_shape_counts(shape):
    x = gaussian(1, *shape)
    rows = x.reshape(-1, 6)
    moment = moment_of(x)
    torch.testing.assert_close(moment.matrix, rows.mT @ rows, **EXACT)
    assert moment.count == len(rows)


@pytest.mark.parametrize("augmented", [False, True])
def test_mask_leaves_tokens_out(augmented):
    x = gaussian(1, 3, 4, 5)
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 1], [0, 0, 0, 0]])
    masked, plain = moment_of(x, augmented, mask), moment_of(x[mask.bool()], augmented)
    assert torch.equal(masked.matrix, plain.matrix)
    assert masked.count == plain.count == 5
    spoiled = x.masked_fill(~mask.bool()[..., None], 1e6)
    assert torch.equal(moment_of(spoiled, augmented, mask).matrix, masked.matrix)


def test_augmented_is_a_constant_last_coordinate():
    x = gaussian(1, 7, 5)
    appended = torch.cat([x, torch.ones(7, 1, dtype=x.dtype)], dim=1)
    assert torch.equal(moment_of(x, augmented=True).matrix, moment_of(appended).matrix)


@pytest.mark.parametrize("width", [1, 2, 9, DENSE_LIMIT, DENSE_LIMIT + 1, 3 * DENSE_LIMIT])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_top_directions_are_the_leading_eigenvectors(width, k):
    spectrum = [0.9**i for i in range(width)]
    x = with_spectrum(width, 2 * width, width, spectrum)
    found = moment_of(x).top_directions(k)
    expected = torch.linalg.svd(x).Vh[:k].mT
    assert found.shape == (width, min(k, width))
    torch.testing.assert_close((found.mT @ expected).abs(), torch.eye(min(k, width)).double(), **EXACT)


@pytest.mark.parametrize("width", [9, 3 * DENSE_LIMIT])
def test_dense_and_iterative_solvers_agree(width, monkeypatch):
    moment = moment_of(gaussian(1, 4 * width, width))
    found = moment.top_directions(3)
    monkeypatch.setattr("mingle.subspace.null_space.DENSE_LIMIT", 10**6)
    torch.testing.assert_close(
        projection_onto(moment.top_directions(3)), projection_onto(found), atol=1e-8, rtol=0
    )


@pytest.mark.parametrize("width", [9, 3 * DENSE_LIMIT])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_rank_deficient_inputs_give_fewer_directions(width, dtype, rank):
    x = with_spectrum(1, 20, width, [1.0, 0.5][:rank]) if rank else torch.zeros(20, width)
    x = x.to(dtype)
    found = moment_of(x).top_directions(3)
    # Entries rounded to float32 leave a little beyond the rank; its square is below the cutoff.
    assert found.shape == (width, rank)
    torch.testing.assert_close(x @ projection_onto(found), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("width", [9, 3 * DENSE_LIMIT])
def test_same_input_gives_the_same_bits(width):
    x = gaussian(1, 50, width).float()
    first, second = (moment_of(x.clone()).top_directions(3) for _ in range(2))
    assert torch.equal(first, second)


def test_no_directions_asked_none_given():
    assert moment_of(gaussian(1, 20, 5)).top_directions(0).shape == (5, 0)


def test_inputs_with_a_graph_are_watched_without_it():
    x = gaussian(1, 4, 5).requires_grad_()
    moment = moment_of(x * 2)
    assert not moment.matrix.requires_grad
    torch.testing.assert_close(moment.matrix, 4 * (x.mT @ x).detach(), **EXACT)


# --- extending a basis


@given(seeds, st.integers(1, 10), st.lists(st.integers(0, 4), min_size=1, max_size=6), st.data())
def test_extended_basis_is_orthonormal_and_spans_the_union(seed, width, sizes, data):
    basis, seen = torch.zeros(width, 0, dtype=torch.float64), torch.zeros(width, 0, dtype=torch.float64)
    for number, k in enumerate(sizes):
        directions = orthonormal(seed + number, width, min(k, width))
        if data.draw(st.booleans()) and seen.shape[1]:
            directions = torch.cat([directions, seen[:, :1]], dim=1)
        new = extend_basis(basis, directions)
        basis, seen = torch.cat([basis, new], dim=1), torch.cat([seen, directions], dim=1)
        torch.testing.assert_close(
            basis.mT @ basis, torch.eye(basis.shape[1], dtype=basis.dtype), atol=1e-9, rtol=0
        )
        torch.testing.assert_close(projection_onto(basis) @ seen, seen, atol=2e-4, rtol=0)
        assert basis.shape[1] <= width
        assert basis.shape[1] <= seen.shape[1]


@given(seeds, st.integers(2, 10), st.integers(1, 5), st.sampled_from([torch.float32, torch.float64]))
def test_repeated_directions_add_nothing(seed, width, k, dtype):
    basis = orthonormal(seed, width, min(k, width)).to(dtype)
    mixed = basis @ torch.linalg.qr(gaussian(seed + 1, basis.shape[1], basis.shape[1]).to(dtype)).Q
    assert extend_basis(basis, basis).shape == (width, 0)
    assert extend_basis(basis, mixed).shape == (width, 0)
    assert extend_basis(basis, torch.zeros(width, 2, dtype=dtype)).shape == (width, 0)


@given(seeds, st.integers(1, 8), st.integers(1, 6))
def test_basis_never_has_more_columns_than_coordinates(seed, width, tasks):
    basis = torch.zeros(width, 0)
    for task in range(tasks):
        directions = orthonormal(seed + task, width, min(3, width)).float()
        basis = torch.cat([basis, extend_basis(basis, directions)], dim=1)
    assert basis.shape[1] == min(width, 3 * tasks)
    torch.testing.assert_close(basis.mT @ basis, torch.eye(basis.shape[1]), atol=1e-5, rtol=0)


def test_nearly_repeated_direction_still_gives_an_orthonormal_column():
    basis = orthonormal(1, 50, 5).float()
    outside = orthonormal(1, 50, 6)[:, 5].float()
    tilted = basis[:, 0] + 1e-3 * outside
    new = extend_basis(basis, tilted[:, None])
    assert new.shape == (50, 1)
    assert (basis.mT @ new).abs().max() < 1e-6
    assert abs(float(new.norm()) - 1) < 1e-6


def test_plain_qr_adds_a_column_per_direction_even_where_it_repeats():
    basis = orthonormal(1, 8, 3)
    assert extend_basis(basis, basis, "qr").shape == (8, 3)
    new = extend_basis(basis, orthonormal(5, 8, 2), "qr")
    whole = torch.cat([basis, new], dim=1)
    torch.testing.assert_close(whole.mT @ whole, torch.eye(5, dtype=whole.dtype), **EXACT)


# --- the projector


@given(seeds, st.integers(2, 10), st.integers(1, 4), st.data())
def test_hard_projector_leaves_the_span_alone_and_is_idempotent(seed, width, rows, data):
    basis = orthonormal(seed, width, data.draw(st.integers(1, width)))
    gradient = gaussian(seed + 1, rows, width)
    projector = NullSpaceProjector(basis, gamma=0.0)
    for _ in range(3):
        projector.observe(gradient)
    once = projector.project(gradient)
    torch.testing.assert_close(once @ basis, torch.zeros(rows, basis.shape[1]).double(), **EXACT)
    torch.testing.assert_close(projector.project(once), once, **EXACT)
    # What is outside the span is kept whole.
    outside = gradient - gradient @ projection_onto(basis)
    torch.testing.assert_close(once, outside, **EXACT)


@given(
    seeds,
    st.integers(2, 8),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.5, 0.99]),
    st.sampled_from([0.0, 1.0, 2.5]),
    st.data(),
)
def test_relaxation_follows_the_formula_step_by_step(seed, width, steps, beta, gamma, data):
    basis = orthonormal(seed, width, data.draw(st.integers(1, width)))
    gradients = gaussian(seed + 1, steps, width)
    expected, history = naive.relaxed(gradients, basis, beta, gamma)
    projector = NullSpaceProjector(basis, beta=beta, gamma=gamma)
    for step, gradient in enumerate(gradients):
        projector.observe(gradient[None])
        torch.testing.assert_close(projector.interference[0], history[step], **EXACT)
        torch.testing.assert_close(projector.project(gradient[None])[0], expected[step], **EXACT)


@given(seeds, st.integers(2, 8), st.integers(1, 10))
def test_relaxed_lies_between_hard_and_off(seed, width, steps):
    basis = orthonormal(seed, width, max(1, width // 2))
    gradient = gaussian(seed + 1, 1, width)
    projector = NullSpaceProjector(basis, beta=0.5, gamma=1.0)
    for _ in range(steps):
        projector.observe(gradient)
    inside = (projector.project(gradient) @ basis).abs()
    free = (gradient @ basis).abs()
    assert bool((inside > 0).all())
    assert bool((inside < free).all())


def test_more_interference_means_less_protection():
    basis = orthonormal(1, 6, 2)
    gradient = basis[:, :1].mT + 0.01 * basis[:, 1:].mT
    projector = NullSpaceProjector(basis, beta=0.9, gamma=1.0)
    passed = []
    for _ in range(5):
        projector.observe(gradient)
        passed.append(float(projector.project(gradient)[0] @ basis[:, 0]))
    assert passed == sorted(passed)
    assert passed[0] < passed[-1]


@given(seeds, st.integers(2, 8), st.integers(2, 4), st.integers(1, 4))
def test_rows_do_not_see_each_other(seed, width, rows, steps):
    basis = orthonormal(seed, width, max(1, width // 2))
    gradients = gaussian(seed + 1, steps, rows, width)
    together = NullSpaceProjector(basis, beta=0.9, gamma=1.5)
    alone = [NullSpaceProjector(basis, beta=0.9, gamma=1.5) for _ in range(rows)]
    for gradient in gradients:
        together.observe(gradient)
        for row, projector in zip(gradient, alone, strict=True):
            projector.observe(row[None])
    found = together.project(gradients[-1])
    expected = torch.cat([p.project(row[None]) for row, p in zip(gradients[-1], alone, strict=True)])
    torch.testing.assert_close(found, expected, **EXACT)


def test_zero_gradient_interferes_with_nothing():
    projector = NullSpaceProjector(orthonormal(1, 4, 2))
    projector.observe(torch.zeros(1, 4, dtype=torch.float64))
    assert torch.equal(projector.interference, torch.zeros(1, 2, dtype=torch.float64))


def test_before_any_gradient_the_projector_is_hard():
    basis, step = orthonormal(1, 6, 2), gaussian(2, 1, 6)
    assert (NullSpaceProjector(basis, gamma=5.0).project(step) @ basis).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_invariant_subspace_gives_the_same_bits(dtype):
    found = []
    for _ in range(3):
        moment = SecondMoment(200, augmented=False, dtype=dtype)
        moment.add(torch.diag(torch.tensor([3.0, 2.0, *[0.0] * 198], dtype=dtype)))
        found.append(moment.top_directions(3))
    assert found[0].shape == (200, 2)
    assert all(torch.equal(found[0], other) for other in found)
