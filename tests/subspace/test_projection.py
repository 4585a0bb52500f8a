"""Every projection against the formulas with full U and V."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from mingle.errors import ConfigError, UnknownNameError
from mingle.subspace import PROJECTIONS, effective_rank, project_delta, svd_of_factors

from .. import naive
from .strategies import gaussian, seeds, with_spectrum

projections = st.sampled_from([p for p in PROJECTIONS if p != "none"])


@st.composite
def problems(draw):
    """D (d_out, d_in) and factors of P with clearly separated singular values (tied ones leave U free)."""
    d_out, d_in = draw(st.integers(2, 12)), draw(st.integers(2, 12))
    rank = draw(st.integers(1, min(d_out, d_in)))
    decay = draw(st.sampled_from([0.5, 0.8, 0.95]))
    seed = draw(seeds)
    previous = with_spectrum(seed, d_out, d_in, [decay**i for i in range(rank)])
    delta = gaussian(seed + 2, d_out, d_in)
    U, S, Vh = torch.linalg.svd(previous, full_matrices=False)
    # More columns than the rank, as stacked experts of similar tasks have.
    B, A = torch.cat([U * S, U * S], dim=1), torch.cat([Vh, Vh]) / 2
    return delta, previous, svd_of_factors(B, A)


@given(problems(), projections)
def test_projection_equals_the_formula_with_full_bases(problem, kind):
    delta, previous, factors = problem
    projected, a = project_delta(delta, factors, kind)
    assert a == effective_rank(factors.S) >= 1
    expected = naive.projected(delta, previous, kind, a)
    torch.testing.assert_close(projected, expected, atol=1e-10, rtol=0)


@given(problems(), projections, st.data())
def test_given_effective_rank_is_the_one_used(problem, kind, data):
    delta, previous, factors = problem
    a = data.draw(st.integers(0, int(torch.linalg.matrix_rank(previous))))
    projected, used = project_delta(delta, factors, kind, a)
    assert used == a
    torch.testing.assert_close(projected, naive.projected(delta, previous, kind, a), atol=1e-10, rtol=0)


@given(problems(), projections)
def test_projecting_again_changes_nothing_and_energy_only_falls(problem, kind):
    delta, _, factors = problem
    once, _ = project_delta(delta, factors, kind)
    twice, _ = project_delta(once, factors, kind)
    torch.testing.assert_close(twice, once, atol=1e-10, rtol=0)
    # What is taken away is orthogonal to what is kept, so squared norms add up.
    removed = delta - once
    energy = once.square().sum() + removed.square().sum()
    torch.testing.assert_close(energy, delta.square().sum(), atol=1e-9, rtol=1e-12)
    assert removed.norm() > 0


@given(problems(), projections)
def test_complement_removes_at_least_what_block_removes(problem, kind):
    assume(kind.startswith("block"))
    delta, _, factors = problem
    block, _ = project_delta(delta, factors, kind)
    complement, _ = project_delta(delta, factors, kind.replace("block", "complement"))
    assert complement.norm() <= block.norm() + 1e-12


@given(problems())
def test_none_and_no_earlier_expert_leave_the_delta_alone(problem):
    delta, _, factors = problem
    assert project_delta(delta, factors, "none") == (delta, 0)
    for kind in PROJECTIONS:
        assert project_delta(delta, None, kind) == (delta, 0)


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_zero_experts_protect_nothing(kind):
    delta = gaussian(1, 6, 5)
    factors = svd_of_factors(torch.zeros(6, 3, dtype=torch.float64), torch.zeros(3, 5, dtype=torch.float64))
    projected, a = project_delta(delta, factors, kind)
    assert a == 0
    torch.testing.assert_close(projected, delta, atol=0, rtol=0)


def test_unknown_projection_offers_the_nearest_name():
    with pytest.raises(UnknownNameError, match="unknown projection 'complemnt'; did you mean complement"):
        project_delta(torch.zeros(2, 2), None, "complemnt")


@pytest.mark.parametrize("rank", [-1, 3, 99])
def test_effective_rank_that_the_experts_do_not_have_is_refused(rank):
    factors = svd_of_factors(gaussian(1, 6, 2), gaussian(2, 2, 6))
    with pytest.raises(ConfigError, match=f"effective rank.*found {rank}"):
        project_delta(gaussian(3, 6, 6), factors, "block", rank)
