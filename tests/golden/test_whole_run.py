"""Three tasks under preset ``reference`` equal the plainly written method, gate by gate, in float64."""

import pytest
import torch
from benchmarks import plain

from mingle.backbones.clip import Clip
from mingle.methods import METHODS, Arrival, Base, SeedPool
from mingle.methods._mingle_options import MingleReplay

RANK, STEPS, LR = 4, 8, 1e-2


@pytest.fixture
def double_base(zoo):
    backbone = Clip()
    return Base(backbone, backbone.open(zoo / "base"), torch.float64)


def plain_model(base):
    model = base.model()
    layers = {}
    for group in base.backbone.groups(model, "full"):
        for name in group.linears:
            linear = model.get_submodule(name)
            layers[name] = plain.PlainMixture(linear.weight, linear.bias)
            model.set_submodule(name, layers[name])
    return model, layers


def replay_of(layers, task, generator):
    gates = {
        name: (
            0.01 * torch.randn(layer.weight.shape[1], generator=generator, dtype=torch.float64),
            torch.zeros(()),
        )
        for name, layer in layers.items()
    }
    seeds = torch.randperm(40, generator=generator)[:20]
    batches = [torch.randperm(20, generator=generator)[:5] for _ in range(STEPS)]
    return MingleReplay(gates=gates, seeds=seeds, batches=batches)


def plain_step(model, layers, groups, bases, base, arrival, replay):
    backbone, head = base.backbone, arrival.head
    for name, layer in layers.items():
        delta = arrival.checkpoint.tensor(f"{name}.weight", torch.float64) - base.tensors[f"{name}.weight"]
        B, A, _ = plain.expert(delta, layer.experts, RANK)
        layer.experts.append((B, A))
        weight, bias = replay.gates[name]
        layer.w.append(weight.clone().requires_grad_())
        layer.c.append(bias.double().clone().requires_grad_())
    pixels = arrival.seeds.batch["pixel_values"][replay.seeds]
    teacher = backbone.build(arrival.checkpoint, base.checkpoint, torch.float64)

    def features(net, x):
        return net(x).image_embeds

    def classify(f):
        return backbone.classify(f, head)

    training = plain.Distillation(
        layers, bases, lambda x: classify(features(model, x)), lambda x: classify(features(teacher, x)), LR
    )
    losses = [training.step(pixels[batch]) for batch in replay.batches]
    for layer in layers.values():
        layer.w[-1], layer.c[-1] = layer.w[-1].detach(), layer.c[-1].detach()
        layer.record = True
    with torch.no_grad():
        features(model, pixels)
    for group in groups:
        new = plain.subspace(layers[group.name].seen, bases[group.name])
        for name in group.linears:
            bases[name] = new
    for layer in layers.values():
        layer.record, layer.seen = False, []
    return losses


def test_reference_run_equals_the_plain_method(double_base, zoo, images):
    base, backbone = double_base, double_base.backbone
    method = METHODS.get("mingle").with_preset("reference", {"rank": RANK, "lr": LR, "steps": STEPS})
    pixels = backbone.prepare(images, base.checkpoint)["pixel_values"].double()
    generator = torch.Generator().manual_seed(3)
    model, layers = plain_model(base)
    groups = backbone.groups(base.model(), "full")
    bases = {
        name: torch.zeros(layer.weight.shape[1], 0, dtype=torch.float64) for name, layer in layers.items()
    }
    state = method.init(base)
    for task in ("task1", "task2", "task3"):
        checkpoint = backbone.open(zoo / task)
        replay = replay_of(layers, task, generator)
        pool = SeedPool({"pixel_values": pixels})
        arrival = Arrival(task, checkpoint, backbone.head(checkpoint), pool, replay=replay)
        losses = plain_step(model, layers, groups, bases, base, arrival, replay)
        state = method.update(state, arrival)
        step = state.steps[-1]
        torch.testing.assert_close(
            torch.tensor(step.report["losses"]), torch.tensor(losses), atol=1e-9, rtol=0
        )
        for name, layer in layers.items():
            gates = step.tensors["gates"]
            torch.testing.assert_close(gates[f"{name}.weight"], layer.w[-1], atol=1e-9, rtol=0)
            torch.testing.assert_close(gates[f"{name}.bias"], layer.c[-1], atol=1e-9, rtol=0)
            product = step.tensors["experts"][f"{name}.B"] @ step.tensors["experts"][f"{name}.A"]
            B, A = layer.experts[-1]
            torch.testing.assert_close(product, B @ A, atol=1e-9, rtol=0)
    for group in groups:
        ours = torch.cat([s.tensors["subspace"][group.name] for s in state.steps], dim=1)
        theirs = bases[group.name]
        torch.testing.assert_close(ours @ ours.mT, theirs @ theirs.mT, atol=1e-9, rtol=0)
    with torch.no_grad():
        ours, theirs = method.model(state)(pixels).image_embeds, model(pixels).image_embeds
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)
    assert (ours - base.model()(pixels).image_embeds).abs().max() > 1e-3


def test_gates_per_sample_equal_the_plain_layer(double_base, zoo, images):
    base, backbone = double_base, double_base.backbone
    method = METHODS.get("mingle").with_preset("static", {"rank": RANK})
    state = method.init(base)
    for task in ("task1", "task2", "task3"):
        state = method.update(state, Arrival(task, backbone.open(zoo / task)))
    ours, (model, layers) = method.model(state), plain_model(base)
    generator = torch.Generator().manual_seed(4)
    for name, layer in layers.items():
        mixture = ours.get_submodule(name)
        mixture.gate.weight.copy_(torch.randn(mixture.gate.weight.shape, generator=generator))
        layer.reduction = "sample"
        layer.w, layer.c = list(mixture.gate.weight), list(mixture.gate.bias)
        layer.experts = [
            (step.tensors["experts"][f"{name}.B"], step.tensors["experts"][f"{name}.A"])
            for step in state.steps
        ]
    pixels = backbone.prepare(images[:5], base.checkpoint)["pixel_values"].double()
    with torch.no_grad():
        expected = model(pixels).image_embeds
        torch.testing.assert_close(ours(pixels).image_embeds, expected, atol=1e-9, rtol=0)
        assert (expected - base.model()(pixels).image_embeds).abs().max() > 1e-3
