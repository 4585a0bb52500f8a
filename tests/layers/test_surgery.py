"""Merged layers go into a model, are found, and come out again."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from mingle.layers import LinearGroup, LowRankExpert, MixtureLinear, mixtures, unwrap, wrap, wrap_norms

from .helpers import draw


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.inner = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x):
        x = self.norm(x)
        return self.inner(self.one(x) + self.two(x))


GROUPS = [LinearGroup(("one", "two"), "norm"), LinearGroup(("inner.0",))]


@pytest.fixture
def block():
    torch.manual_seed(0)
    model = Block()
    with torch.no_grad():
        model.norm.weight.copy_(draw(3, 6))
        model.norm.bias.copy_(draw(4, 6))
    return model


def test_wrap_and_unwrap_are_a_round_trip(block):
    modules = dict(block.named_modules())
    state = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    x = draw(1, 2, 3, 6).float()
    expected = block(x)
    layers = wrap(block, GROUPS)
    assert list(layers) == ["one", "two", "inner.0"]
    wrap_norms(block, GROUPS, layers)
    assert dict(mixtures(block)) == layers
    assert block.one is layers["one"]
    assert isinstance(block.inner[2], nn.Linear)
    assert torch.equal(block(x), expected)
    assert unwrap(block) is block
    assert dict(block.named_modules()) == modules
    assert all(torch.equal(state[name], tensor) for name, tensor in block.state_dict().items())
    assert list(mixtures(block)) == []
    assert torch.equal(block(x), expected)


def test_unwrap_takes_the_experts_out_too(block):
    x = draw(1, 2, 3, 6).float()
    expected = block(x)
    for layer in wrap(block, GROUPS).values():
        d_out, d_in = layer.linear.weight.shape
        layer.extend([LowRankExpert(draw(2, 2, d_in), draw(3, d_out, 2))])
        layer.gate.append(draw(4, d_in), draw(5))
    assert (block(x) - expected).abs().max() > 1e-3
    assert torch.equal(unwrap(block)(x), expected)


def test_wrapped_model_can_be_copied(block):
    layers = wrap(block, GROUPS)
    wrap_norms(block, GROUPS, layers)
    twin = copy.deepcopy(block)
    copies = dict(mixtures(twin))
    assert copies.keys() == layers.keys()
    assert not set(map(id, copies.values())) & set(map(id, layers.values()))
    # A norm follows the gate of its own copy.
    copies["one"].gate.append(draw(4, 6), draw(5))
    assert twin.norm._reader[1] is copies["one"].gate
    assert len(layers["one"].gate.weight) == 0


@pytest.mark.parametrize("name", ["inner.1", "norm", "inner"])
def test_only_linears_can_be_wrapped(block, name):
    with pytest.raises(TypeError, match=f"{name}: expected an nn.Linear or Conv1D, found"):
        wrap(block, [LinearGroup((name,))])


def test_only_layer_norms_are_wrapped_as_norms(block):
    groups = [LinearGroup(("one",), "inner.1")]
    layers = wrap(block, groups)
    with pytest.raises(TypeError, match=r"inner\.1: expected an nn\.LayerNorm, found ReLU"):
        wrap_norms(block, groups, layers)


def test_a_conv1d_is_a_linear_with_its_weight_the_other_way_round():
    """transformers stores GPT-2's weights (d_in, d_out); the mixture around one equals that of the Linear."""
    plain = nn.Linear(6, 4)
    turned = Conv1D(4, 6)
    with torch.no_grad():
        turned.weight.copy_(plain.weight.mT)
        turned.bias.copy_(plain.bias)
    models = [nn.ModuleDict({"layer": layer}) for layer in (plain, turned)]
    x = draw(1, 2, 3, 6).float()
    outputs = []
    for model in models:
        layer = wrap(model, [LinearGroup(("layer",))])["layer"]
        layer.extend([LowRankExpert(draw(2, 2, 6), draw(3, 4, 2), draw(4, 4))])
        layer.gate.append(draw(5, 6), draw(6))
        outputs.append(layer(x))
    torch.testing.assert_close(*outputs, atol=1e-6, rtol=0)
    assert unwrap(models[1])["layer"] is turned


def test_a_group_turns_the_weights_that_are_stored_the_other_way_round():
    weight = draw(1, 3, 5)
    assert LinearGroup(("a",)).turned(weight) is weight
    turned = LinearGroup(("a",), transposed=True).turned(weight)
    assert torch.equal(turned, weight.T)
    assert turned.is_contiguous()


def test_reduction_reaches_every_gate(block):
    assert {layer.gate.reduction for layer in wrap(block, GROUPS, "batch").values()} == {"batch"}


@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 4, 6), (2, 2, 3, 6)])
@pytest.mark.parametrize("reduction", ["sample", "batch"])
def test_mixture_norm_equals_the_formula(block, shape, reduction):
    block = block.double()
    norm = block.norm
    layers = wrap(block, GROUPS, reduction)
    wrapped = wrap_norms(block, GROUPS, layers)["norm"]
    deltas = [(draw(20, 6), draw(21, 6)), (draw(22, 6), draw(23, 6))]
    wrapped.extend(deltas)
    gate = layers["one"].gate
    for i in range(2):
        gate.append(draw(30 + i, 6), draw(40 + i))
    x = draw(1, *shape)
    samples = x.reshape(1, 1, 6) if x.dim() == 1 else x.reshape(len(x), -1, 6)
    hat = (samples - samples.mean(-1, keepdim=True)) / (
        samples.var(-1, correction=0, keepdim=True) + 1e-5
    ).sqrt()
    plain = hat * norm.weight + norm.bias
    rows = torch.stack([gate.weight @ sample.mean(0) + gate.bias for sample in plain])
    if reduction == "batch":
        rows = rows.mean(0).expand_as(rows)
    expected = torch.stack(
        [
            hat[n] * (norm.weight + sum(g * w for g, (w, _) in zip(rows[n], deltas, strict=True)))
            + norm.bias
            + sum(g * b for g, (_, b) in zip(rows[n], deltas, strict=True))
            for n in range(len(samples))
        ]
    )
    torch.testing.assert_close(wrapped(x), expected.reshape(x.shape), atol=1e-12, rtol=1e-12)
    assert isinstance(layers["one"], MixtureLinear)
