"""Hooks see what layers see, and always come off."""

import pytest
import torch
from torch import nn

from mingle.adaptation import second_moments, watch_inputs
from mingle.layers import LinearGroup, wrap


def hooks(model):
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def samples(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_inputs_are_seen_by_name_and_in_order(model):
    seen = []
    x = samples(1, 2, 4)
    with watch_inputs({"last": model[2], "first": model[0]}, lambda *what: seen.append(what)):
        model(x)
        assert hooks(model) == 2
    assert [name for name, _ in seen] == ["first", "last"]
    assert seen[0][1] is x
    assert torch.equal(seen[1][1], model[1](model[0](x)))


def test_nothing_is_seen_after_the_watch(model):
    seen = []
    with watch_inputs({"first": model[0]}, lambda *what: seen.append(what)):
        pass
    model(samples(1, 2, 4))
    assert seen == []
    assert hooks(model) == 0


@pytest.mark.parametrize("where", ["in the body", "in the watcher", "in the model"])
def test_hooks_come_off_when_something_fails(model, where):
    def see(name, x):
        if where == "in the watcher":
            raise RuntimeError(where)

    def run():
        with watch_inputs({"first": model[0], "last": model[2]}, see):
            model(samples(1, 2, 5 if where == "in the model" else 4))
            raise RuntimeError(where)

    with pytest.raises(RuntimeError, match="shapes cannot be" if where == "in the model" else where):
        run()
    assert hooks(model) == 0


@pytest.mark.parametrize("augmented", [False, True])
def test_second_moments_add_up_over_passes(model, augmented):
    layers = wrap(model, [LinearGroup(("0",)), LinearGroup(("2",))])
    parts = [samples(i, 2, 3, 4) for i in range(3)]
    found = second_moments(layers, [lambda x=x: model(x) for x in parts], augmented=augmented)
    inputs = torch.cat(parts).reshape(-1, 4)
    for name, rows in (("0", inputs), ("2", model[1](model[0](inputs)))):
        full = torch.cat([rows, torch.ones(len(rows), 1).double()], dim=1) if augmented else rows
        torch.testing.assert_close(found[name].matrix, full.mT @ full, atol=1e-12, rtol=1e-12)
        assert found[name].count == 18
        assert not found[name].matrix.requires_grad
    assert hooks(model) == 0


def test_padding_does_not_count(model):
    layers = wrap(model, [LinearGroup(("0",))])
    x, mask = samples(1, 2, 3, 4), torch.tensor([[1, 0, 0], [1, 1, 0]])
    layers["0"].pool.mask = mask
    found = second_moments(layers, [lambda: model(x)], augmented=False)
    rows = x[mask.bool()]
    torch.testing.assert_close(found["0"].matrix, rows.mT @ rows, atol=1e-12, rtol=1e-12)


def test_no_graph_is_built_while_watching(model):
    model.requires_grad_(True)
    layers = wrap(model, [LinearGroup(("0",))])
    outputs = []
    second_moments(layers, [lambda: outputs.append(model(samples(1, 2, 4)))], augmented=False)
    assert not outputs[0].requires_grad


def test_a_mask_is_not_for_inputs_without_tokens(model):
    """Gate and second moment agree: every row of (N, d) is a sample of its own and counts."""
    layers = wrap(model, [LinearGroup(("0",))])
    x, pool = samples(1, 3, 4), layers["0"].pool
    pool.mask = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 0]])
    found = second_moments(layers, [lambda: model(x)], augmented=False)
    torch.testing.assert_close(found["0"].matrix, x.mT @ x, atol=1e-12, rtol=1e-12)
    assert torch.equal(pool(x), x)
