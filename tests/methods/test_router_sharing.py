"""Gates that are shared between tasks that a router confuses, and the scores of seeds that were left out."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mingle.adaptation import RouterStatistics, RouterSystem, router_statistics
from mingle.layers import ClosedFormGate, Decision, Reading
from mingle.methods import METHODS

from .conftest import TASKS
from .test_analytic import samples


def naive_left_out(parts, ridge, times):
    """Solved anew without each sample of the last task in turn, at the weights and λ of the whole.

    A sample is ``times`` rows, one after the other.
    """
    X, strength = parts[-1], ridge * sum(p.square().sum() / len(p) for p in parts) / parts[0].shape[1]
    rows = []
    for k in range(0, len(X), times):
        left = [*parts[:-1], torch.cat([X[:k], X[k + times :]])]
        sizes = [len(part) for part in parts]
        moment = sum(part.mT @ part / size for part, size in zip(left, sizes, strict=True))
        means = torch.stack([part.sum(0) / size for part, size in zip(left, sizes, strict=True)], dim=1)
        weight = torch.linalg.solve(moment + strength * torch.eye(len(moment), dtype=moment.dtype), means)
        rows.append(X[k : k + times] @ weight)
    return torch.stack(rows)


@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(2, 12), min_size=1, max_size=4),
    width=st.integers(2, 30),
    ridge=st.sampled_from([1e-3, 1e-1]),
    times=st.integers(1, 3),
)
def test_left_out_scores_are_those_of_solving_without_the_sample(seed, sizes, width, ridge, times):
    parts = samples(seed, [*sizes[:-1], sizes[-1] * times], width)
    read = parts[-1].unflatten(0, (-1, times))
    system = RouterSystem([router_statistics(part) for part in parts], ridge)
    expected = naive_left_out(parts, ridge, times)
    torch.testing.assert_close(system.left_out_scores(read), expected, atol=1e-7, rtol=1e-6)
    # A sample that others were read more often than.
    more = torch.cat([read, torch.zeros_like(read[:, :1])], dim=1)
    torch.testing.assert_close(system.left_out_scores(more)[:, :times], expected, atol=1e-7, rtol=1e-6)


def test_gates_on_seeds_are_those_of_the_refined_router(merge):
    """What distillation added to earlier gates counts for what the new task is confused with."""
    method = METHODS.get("mingle").with_preset("default", {"rank": 4, "refine": 30, "lr": 0.01})
    *earlier, newest = merge(method).steps
    place = next(n for n in newest.tensors["router"] if n.endswith(".factor")).removesuffix(".factor")
    kept = [step.tensors["router"] for step in (*earlier, newest)]
    system = RouterSystem([RouterStatistics(s[f"{place}.factor"], s[f"{place}.mean"]) for s in kept], 1e-2)
    refined = torch.stack([s[f"{place}.refined"] for s in kept[:-1]])
    weight = kept[-1][f"{place}.weight"].clone()
    weight[-1] -= kept[-1][f"{place}.refined"]
    torch.testing.assert_close(weight[:-1], system.weight()[:-1] + refined)
    assert refined.abs().max() > 0.01
    gates = list(newest.report["router"]["gates_on_seeds"].values())
    unrefined = METHODS.get("mingle").with_preset("default", {"rank": 4})
    without = list(merge(unrefined).steps[-1].report["router"]["gates_on_seeds"].values())
    assert max(abs(one - other) for one, other in zip(gates, without, strict=True)) > 0.01
    assert newest.report["router"]["bytes"] == sum(t.nbytes for t in kept[-1].values())


def test_a_gate_is_shared_by_the_rows_of_the_confusion():
    weight, confusion = torch.eye(3), torch.tensor([[2.0, 1, 1], [1, 3, 0], [1, 0, 1]])
    gate = ClosedFormGate(weight, Reading(), Decision("top_k"), confusion)
    found = gate(torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.0, 1.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.25, 0.25], [0.5, 0, 0.5]]))


def test_a_step_keeps_how_often_tasks_are_confused(merge):
    """All tasks have the same seeds here: nobody can tell them apart."""
    method = METHODS.get("mingle").with_preset("default", {"rank": 4, "router_share": "confused"})
    state = merge(method)
    first, second, third = (
        next(t for name, t in step.tensors["router"].items() if name.endswith(".confusion"))
        for step in state.steps
    )
    assert torch.equal(first, torch.ones(1, 1, dtype=torch.float64))
    assert torch.equal(third[:2, :2], second)
    assert torch.equal(third, third.mT)
    torch.testing.assert_close(third[-1].sum(), torch.ones((), dtype=torch.float64))
    gates = state.steps[-1].report["router"]["gates_on_seeds"]
    torch.testing.assert_close(torch.tensor(list(gates.values()), dtype=torch.float64), third[-1])
    assert list(gates) == list(TASKS)
    plain = merge(METHODS.get("mingle").with_preset("default", {"rank": 4}))
    assert not any("confusion" in name for name in plain.steps[-1].tensors["router"])
