"""Gates that are shared between tasks that a router confuses, and the scores of seeds that were left out."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mingle.adaptation import RouterSystem, router_statistics
from mingle.layers import ClosedFormGate, Decision, Reading
from mingle.methods import METHODS

from .conftest import TASKS
from .test_analytic import samples


def naive_left_out(parts, ridge):
    """Solved anew without each sample of the last task in turn, at the weights and λ of the whole."""
    X, strength = parts[-1], ridge * sum(p.square().sum() / len(p) for p in parts) / parts[0].shape[1]
    rows = []
    for k in range(len(X)):
        left = [*parts[:-1], torch.cat([X[:k], X[k + 1 :]])]
        sizes = [len(part) for part in parts]
        moment = sum(part.mT @ part / size for part, size in zip(left, sizes, strict=True))
        means = torch.stack([part.sum(0) / size for part, size in zip(left, sizes, strict=True)], dim=1)
        weight = torch.linalg.solve(moment + strength * torch.eye(len(moment), dtype=moment.dtype), means)
        rows.append(X[k] @ weight)
    return torch.stack(rows)


@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(2, 12), min_size=1, max_size=4),
    width=st.integers(2, 30),
    ridge=st.sampled_from([1e-3, 1e-1]),
)
def test_left_out_scores_are_those_of_solving_without_the_sample(seed, sizes, width, ridge):
    parts = samples(seed, sizes, width)
    found = RouterSystem([router_statistics(part) for part in parts], ridge).left_out_scores(parts[-1])
    torch.testing.assert_close(found, naive_left_out(parts, ridge), atol=1e-7, rtol=1e-6)


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
