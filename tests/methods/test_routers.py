"""The two routers on mingle's experts, against plain formulas."""

import pytest
import torch

from mingle.layers import SubspaceGate, mixtures
from mingle.methods import METHODS

from .. import naive
from .conftest import TASKS


def build(name, preset="default", **changes):
    return METHODS.get(name).with_preset(preset, {"rank": 4} | changes)


@pytest.mark.parametrize("name", ["oracle", "nearest_subspace"])
def test_experts_are_those_of_mingle(merge, name):
    routed = merge(build(name), seeds=None)
    expected = merge(METHODS.get("mingle").with_preset("static", {"rank": 4}), seeds=None)
    for one, two in zip(routed.steps, expected.steps, strict=True):
        assert one.tensors["experts"].keys() == two.tensors["experts"].keys()
        for key, tensor in one.tensors["experts"].items():
            assert torch.equal(tensor, two.tensors["experts"][key])
        assert one.report["energy"] == two.report["energy"]


def test_oracle_adds_exactly_the_expert_of_the_task(base, merge, stored, pool):
    method = build("oracle")
    state = merge(method)
    for step in state.steps:
        experts = step.tensors["experts"]
        tensors = dict(stored["base"])
        for name in (key.removesuffix(".A") for key in experts if key.endswith(".A")):
            weight = tensors[f"{name}.weight"]
            tensors[f"{name}.weight"] = weight + experts[f"{name}.B"] @ experts[f"{name}.A"]
        plain = naive.same_parameters(base.model(), tensors)
        expected = plain(**pool.batch).image_embeds
        found = method.model(state, step.task)(**pool.batch).image_embeds
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def cosines(x, experts):
    """cos(x, projection of x on the row space of each A), through a QR of each."""
    rows = []
    for sample in x:
        projected = [Q @ (Q.mT @ sample) for Q in (torch.linalg.qr(A.mT).Q for A in experts)]
        rows.append(torch.stack([sample @ p / (sample.norm() * p.norm()) for p in projected]))
    return torch.stack(rows)


@pytest.mark.parametrize(("preset", "temperature"), [("default", 0.05), ("top1", None)])
def test_gates_are_the_plain_cosines_normalised(merge, preset, temperature):
    changes = {} if temperature is None else {"temperature": temperature}
    method = build("nearest_subspace", preset, **changes)
    state = merge(method)
    for name, layer in mixtures(method.model(state)):
        x = torch.randn(5, 3, layer.A.shape[1], generator=torch.Generator().manual_seed(1))
        scores = cosines(x.mean(1), [step.tensors["experts"][f"{name}.A"] for step in state.steps])
        gates = layer.gate(layer.pool(x))
        if temperature is None:
            assert gates.tolist() == [[float(s == max(row)) for s in row] for row in scores.tolist()]
        else:
            torch.testing.assert_close(gates, (scores / temperature).softmax(1), atol=1e-5, rtol=0)
            assert gates.std(1).min() > 1e-3


def test_an_input_in_one_subspace_goes_there():
    A = torch.tensor([[2.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 3, 0], [0, 0, 0, 0]])
    owner = torch.tensor([0, 0, 1, 1])
    x = torch.tensor([[1.0, -1, 0, 0], [0, 0, -5, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    assert SubspaceGate(A, owner, None)(x).argmax(1).tolist()[:2] == [0, 1]
    gates = SubspaceGate(A, owner, 0.01)(x)
    torch.testing.assert_close(gates[:2], torch.eye(2))
    # Outside of every subspace, or nothing at all: nobody is preferred, and nothing is NaN.
    assert torch.equal(gates[2:], torch.full((2, 2), 0.5))


def test_width_rule_sets_the_rank(base):
    for name in ("oracle", "nearest_subspace"):
        assert METHODS.get(name).with_preset().settings(base)["rank"] == 16
        assert build(name).settings(base)["rank"] == 4
        assert not build(name).needs_seeds
    assert METHODS.get("nearest_subspace").with_preset("top1").options.scores == "top1"


def test_the_oracle_forgets_nothing(merge, pool):
    method = build("oracle")
    state = merge(method, TASKS)
    early, late = (method.model(s, TASKS[0])(**pool.batch).image_embeds for s in (state.prefix(1), state))
    torch.testing.assert_close(late, early, atol=1e-6, rtol=0)
