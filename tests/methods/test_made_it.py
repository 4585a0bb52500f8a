"""Experts that several tasks share, against dense formulas; and that earlier steps stay as they are."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mingle.layers import LowRankExpert, SubspaceGate, mixtures
from mingle.methods import METHODS
from mingle.methods.base_experts import lone_expert
from mingle.methods.made_it import affinity, joined, threshold

from .. import naive_methods
from .conftest import TASKS


def build(preset="default", **changes):
    return METHODS.get("made_it").with_preset(preset, changes)


def outputs(method, state, pool):
    with torch.no_grad():
        return method.model(state)(**pool.batch).image_embeds


def random_expert(seed, rank=3, d_out=9, d_in=8):
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(d_out, d_in, generator=generator, dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(delta, full_matrices=False)
    return LowRankExpert(S[:rank, None] * Vh[:rank], U[:, :rank])


def naively(layer, x, pool, temperature):
    """A layer's output from dense experts: softmax over experts of the cosine of x̄ and its projection."""
    pooled, scores = x.mean(1), []
    for expert in pool.values():
        V = naive_methods.row_space(expert, int(0.1 * min(expert.shape)))
        projected = pooled @ V @ V.mT
        scores.append((pooled * projected).sum(1) / (pooled.norm(dim=1) * projected.norm(dim=1)))
    gates = (torch.stack(scores, dim=1) / temperature).softmax(1)
    added = torch.stack([x @ expert.mT for expert in pool.values()], dim=1)
    return layer.linear.double()(x) + torch.einsum("ne,netd->ntd", gates, added)


@pytest.mark.parametrize("merged", ["mean", "sum"])
def test_it_is_its_naive_formula(base, merge, stored, merged):
    method = build(merge_deviations=0.0, merged=merged, temperature=0.05)
    state = merge(method, seeds=None)
    pools = naive_methods.made_it(stored["base"], [stored[task] for task in TASKS], 0.0, merged)
    assert {len(pool) for pool in pools.values()} >= {2, 3}
    for name, layer in mixtures(method.model(state)):
        pool = pools[f"{name}.weight"]
        for tasks, expert in pool.items():
            for task in tasks:
                alone = lone_expert([step.tensors for step in state.steps], task, name)
                found = alone.B.double() @ alone.A.double()
                torch.testing.assert_close(found, expert, atol=1e-5, rtol=1e-4)
        x = torch.randn(5, 3, layer.A.shape[1], generator=torch.Generator().manual_seed(1))
        expected = naively(layer, x.double(), pool, 0.05)
        layer.linear.float()
        torch.testing.assert_close(layer(x).double(), expected, atol=1e-4, rtol=1e-4)
    report = state.steps[-1].report["merging"]
    assert report["experts"] == sum(len(pool) for pool in pools.values())
    assert set(report["joined"]) == {n.removesuffix(".weight") for n, p in pools.items() if (2,) not in p}


def test_earlier_steps_and_their_models_stay(merge, pool):
    """Every expert joins the one before, so that only the newest step's are in use."""
    method = build(merge_deviations=-9.0)
    states = [merge(method, TASKS[:t]) for t in (1, 2, 3)]
    assert [s.steps[-1].report["merging"]["experts"] for s in states] == [12, 12, 12]
    for early in states[:2]:
        late = states[-1].prefix(len(early.steps))
        assert torch.equal(outputs(method, late, pool), outputs(method, early, pool))
    assert not torch.allclose(outputs(method, states[1], pool), outputs(method, states[2], pool), atol=1e-5)
    for _, layer in mixtures(method.model(states[-1])):
        assert layer.gate(layer.pool(torch.ones(1, 2, layer.A.shape[1]))).tolist() == [[0, 0, 1]]


def test_a_checkpoint_that_comes_again_is_the_expert_that_is_there(merge, arrive, pool):
    method = build()
    once = merge(method, TASKS[:1])
    again = method.update(once, dataclasses.replace(arrive("task1"), name="again"))
    assert again.steps[-1].report["merging"]["experts"] == 12
    torch.testing.assert_close(outputs(method, again, pool), outputs(method, once, pool), atol=1e-5, rtol=0)
    other = method.update(once, arrive("task2"))
    assert other.steps[-1].report["merging"]["experts"] > 12


def test_unmerged_keeps_all_and_half_precision_holds_what_was_merged(merge):
    kept = merge(build("unmerged")).steps[-1]
    assert kept.report["merging"] == {"threshold": None, "joined": [], "linears": 12, "experts": 36}
    half = merge(build(merge_deviations=-9.0, stored="bfloat16")).steps[-1]
    assert {tensor.dtype for tensor in half.tensors["experts"].values()} == {torch.bfloat16}


def test_rank_is_a_tenth_of_the_smaller_side(merge):
    """The model is 32 wide and its MLPs are 48."""
    for method, rank in ((build(), 3), (build(rank=5), 5)):
        experts = merge(method, ("task1",)).steps[0].tensors["experts"]
        assert {len(tensor) for name, tensor in experts.items() if name.endswith(".A")} == {rank}


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 5))
def test_affinity_is_the_mean_squared_cosine_of_principal_angles(seed, one, two):
    a, b = random_expert(seed, one).A, random_expert(seed + 1, two).A
    angles = torch.linalg.svdvals(torch.linalg.qr(a.mT).Q.mT @ torch.linalg.qr(b.mT).Q)
    assert affinity(a, b) == pytest.approx(float((angles**2).mean()), abs=1e-9)
    assert affinity(b, a) == pytest.approx(affinity(a, b), abs=1e-12)
    assert affinity(a, a[:1]) == pytest.approx(1)
    with_nothing = torch.cat([b, torch.zeros(2, 8, dtype=b.dtype)])
    assert affinity(a, with_nothing) == pytest.approx(affinity(a, b), abs=1e-12)
    assert affinity(a, torch.zeros(2, 8)) == 0


def test_the_threshold_follows_the_distribution():
    assert threshold([0.2, 0.4], 1.0) == pytest.approx(0.4)
    assert threshold([0.2, 0.4], 0.0) == pytest.approx(0.3)
    assert threshold([0.8, 1.0], 2.0) == 0.99
    assert threshold([0.2, 0.4], None) is threshold([], 1.0) is None


@given(st.integers(0, 10**6), st.integers(1, 4))
def test_joined_experts_are_the_best_of_that_rank(seed, tasks):
    one, two = random_expert(seed), random_expert(seed + 1)
    dense = [e.B @ e.A for e in (one, two)]
    for merged, both in (("mean", (tasks * dense[0] + dense[1]) / (tasks + 1)), ("sum", sum(dense))):
        found = joined(one, two, tasks, merged)
        assert found.A.shape == two.A.shape
        left = torch.linalg.svdvals(both)[3:].norm()
        assert float((both - found.B @ found.A).norm()) == pytest.approx(float(left), rel=1e-6)
        rows = found.A @ found.A.mT
        torch.testing.assert_close(rows, rows.diagonal().diag(), atol=1e-8 * float(rows.max()), rtol=0)


@pytest.mark.parametrize("temperature", [0.1, None])
def test_an_expert_without_ranks_has_no_gate(temperature):
    A, owner = torch.eye(4)[:3], torch.tensor([0, 0, 2])
    x = torch.tensor([[0.0, 0, 0, 1], [0, 0, 1, 0]])
    gates = SubspaceGate(A, owner, temperature)(x)
    assert gates[:, 1].tolist() == [0, 0]
    assert gates.sum(1).tolist() == [1, 1]
    assert gates[1, 2] > 0.99
