"""Which earlier tasks a new one resembles, against plain projections, and what refining makes of it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mingle.layers import LowRankExpert, build_expert
from mingle.methods import METHODS
from mingle.methods._mingle_similarity import confused_with, overlap_report, shared_energy

from .conftest import TASKS


def expert(seed, rank, shape=(5, 7)):
    delta = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return build_expert(delta, [], rank=rank, projection="none")[0]


@given(seed=st.integers(0, 10**6), ranks=st.lists(st.integers(1, 5), min_size=2, max_size=4))
def test_shared_energy_is_that_of_the_projected_expert(seed, ranks):
    new, *earlier = (expert(seed + i, rank) for i, rank in enumerate(ranks))
    found = shared_energy(new, earlier)
    dense = new.B @ new.A
    for row, other in zip(found, earlier, strict=True):
        projector = torch.linalg.pinv(other.A) @ other.A
        inside = (dense @ projector).square().sum()
        chance = dense.square().sum() * torch.linalg.matrix_rank(other.A) / 7
        torch.testing.assert_close(row, torch.stack([inside, chance, dense.square().sum()]))


def test_rows_of_an_expert_need_not_be_orthogonal():
    """As after training A itself."""
    new = expert(5, 3)
    A = torch.eye(2, 7, dtype=torch.float64)
    A[1, 0] = 9
    trained = LowRankExpert(A, new.B[:, :2])
    inside = (new.B @ new.A)[:, :2].square().sum()
    torch.testing.assert_close(shared_energy(new, [trained])[0, 0], inside)


def test_an_expert_shares_everything_with_itself_and_nothing_with_zero():
    new = expert(3, 2)
    nothing = type(new)(torch.zeros_like(new.A), new.B)
    same, zero = shared_energy(new, [new, nothing])
    assert same[0] == pytest.approx(float(same[2]))
    assert zero[:2].tolist() == [0, 0]
    assert shared_energy(new, []).shape == (0, 3)


def test_the_report_weighs_linears_by_their_energy():
    one, two = torch.tensor([[1.0, 2.0, 4.0]]).double(), torch.tensor([[6.0, 1.0, 8.0]]).double()
    expected = {"a": {"shared": pytest.approx(7 / 12), "chance": pytest.approx(3 / 12)}}
    assert overlap_report(["a"], [one, two]) == expected
    assert overlap_report(["a"], [one * 0]) == {"a": {"shared": 0, "chance": 0}}


def test_confused_tasks_are_those_that_get_gates():
    gates = {"a": 0.15, "b": 0.05, "c": 0.3, "new": 0.5}
    assert confused_with(gates, "new", 0.1) == ["c", "a"]
    assert confused_with(gates, "new", 0.4) == []


def test_a_step_says_what_it_shares_with_earlier_ones(merge):
    state = merge(METHODS.get("mingle").with_preset("default", {"rank": 4}))
    assert state.steps[0].report["energy"]["overlap"] == {}
    overlap = state.steps[2].report["energy"]["overlap"]
    assert list(overlap) == list(TASKS[:2])
    for task, found in overlap.items():
        earlier = state.steps[TASKS.index(task)].tensors["experts"]
        newest = state.steps[2].tensors["experts"]
        names = [name for name in newest if name.endswith(".A")]
        inside = total = 0
        for name in names:
            projector = torch.linalg.pinv(earlier[name].double()) @ earlier[name].double()
            inside += float((newest[name].double() @ projector).square().sum())
            total += float(newest[name].double().square().sum())
        assert found["shared"] == pytest.approx(inside / total, rel=1e-4)
        assert 0 < found["chance"] < 1


@pytest.mark.parametrize("similar", [1.1, 0.1])
def test_refining_may_move_along_what_similar_tasks_use(merge, similar):
    """All tasks have the same seeds here, so each resembles all others."""
    options = {"rank": 4, "refine": 8, "lr": 0.05, "gamma": 0.0, "similar": similar}
    state = merge(METHODS.get("mingle").with_preset("default", options))
    earlier, newest = (step.tensors["router"] for step in state.steps[:2])
    (place,) = (key.removesuffix(".refined") for key in newest if "refined" in key)
    moved, leading = newest[f"{place}.refined"], earlier[f"{place}.factor"][:3]
    along = (torch.nn.functional.normalize(leading, dim=1) @ moved).norm() / moved.norm()
    assert (along < 1e-4) == (similar > 1)
