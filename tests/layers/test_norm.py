"""The gated LayerNorm equals the formula written down and shares the gate of the Linear that reads it."""

import pytest
import torch

from mingle.layers import Gate, LinearGroup, MixtureNorm, PooledInput, unwrap, wrap, wrap_norms
from mingle.methods import METHODS, Arrival, SeedPool


def build(tasks=2, width=6):
    torch.manual_seed(0)
    norm = torch.nn.LayerNorm(width).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    gate = Gate(width, dtype=torch.float64)
    for _ in range(tasks):
        gate.append(torch.randn(width), torch.randn(()))
    mixture = MixtureNorm(norm, PooledInput(), gate)
    deltas = [(torch.randn(width).double(), torch.randn(width).double()) for _ in range(tasks)]
    mixture.extend(deltas)
    return norm, gate, mixture, deltas


@pytest.mark.parametrize("shape", [(3, 6), (3, 5, 6), (3, 2, 5, 6)])
def test_equals_the_formula(shape):
    norm, gate, mixture, deltas = build()
    x = torch.randn(shape, dtype=torch.float64)
    expected = torch.empty_like(x)
    for n, sample in enumerate(x):
        plain = norm(sample)
        g = gate.weight @ plain.reshape(-1, 6).mean(0) + gate.bias
        weight = norm.weight + sum(g[i] * deltas[i][0] for i in range(2))
        bias = norm.bias + sum(g[i] * deltas[i][1] for i in range(2))
        centred = sample - sample.mean(-1, keepdim=True)
        hat = centred / (sample.var(-1, keepdim=True, unbiased=False) + norm.eps).sqrt()
        expected[n] = hat * weight + bias
    torch.testing.assert_close(mixture(x), expected.detach(), atol=1e-12, rtol=1e-10)


def test_without_deltas_it_is_the_norm():
    norm, gate, _, _ = build()
    x = torch.randn(3, 5, 6, dtype=torch.float64)
    assert torch.equal(MixtureNorm(norm, PooledInput(), gate)(x), norm(x))


def test_surgery_registers_nothing_twice_and_comes_off():
    model = torch.nn.Sequential(torch.nn.LayerNorm(6), torch.nn.Linear(6, 4))
    names = list(model.state_dict())
    groups = [LinearGroup(("1",), "0")]
    layers = wrap(model, groups)
    norms = wrap_norms(model, groups, layers)
    assert list(norms) == ["0"]
    parameters = [name for name, _ in model.named_buffers(remove_duplicate=False)]
    assert not any(name.startswith("0.") and "gate" in name for name in parameters)
    unwrap(model)
    assert list(model.state_dict()) == names
    assert isinstance(model[0], torch.nn.LayerNorm)


@pytest.mark.parametrize("preset", ["default", "learned"])
def test_a_run_with_gated_vectors_keeps_more_energy_and_changes_the_output(base, zoo, images, preset):
    backbone, kept, outputs = base.backbone, {}, {}
    pixels = backbone.prepare(images, base.checkpoint)
    for vectors in ("dropped", "gated"):
        method = METHODS.get("mingle").with_preset(preset, {"vectors": vectors, "steps": 3, "rank": 4})
        checkpoint = backbone.open(zoo / "task1")
        arrival = Arrival("task1", checkpoint, backbone.head(checkpoint), SeedPool(pixels))
        state = method.update(method.init(base), arrival)
        kept[vectors] = state.steps[0].report["energy"]["kept"]
        outputs[vectors] = method.model(state)(**pixels).image_embeds
        norms = [name for name in state.steps[0].tensors["experts"] if "layer_norm" in name]
        assert len(norms) == (8 if vectors == "gated" else 0)
    assert kept["gated"] > kept["dropped"]
    assert (outputs["gated"] - outputs["dropped"]).abs().max() > 1e-4
