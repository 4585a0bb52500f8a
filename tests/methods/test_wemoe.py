"""Routed MLPs against a plainly written dense mixture: one merged weight per sample, plain autograd."""

import pytest
import torch
from torch import nn

from mingle.errors import DivergedError
from mingle.methods import METHODS

from .. import naive
from .conftest import TASKS

BLOCKS = [f"vision_model.encoder.layers.{i}" for i in range(2)]
METHOD_NAMES = ("wemoe", "lora_wemoe")
ROUTER = ("hidden_weight", "hidden_bias", "weight", "bias")


def build(name, **changes):
    # All forty samples in every batch: nothing depends on what was drawn.
    everything = {"seeds_per_class": 10, "batch_size": 40, "steps": 3, "lr": 1e-2}
    low_rank = {"rank": 4} if name == "lora_wemoe" else {}
    return METHODS.get(name).with_preset(changes=everything | low_rank | changes)


class NaiveMLP(nn.Module):
    """W = W0 + Σ g_i Δ_i built anew for every sample; g the mean of the router over the sample's tokens."""

    def __init__(self, activation, base, deltas, router):
        super().__init__()
        self.activation, self.base, self.deltas, self.router = activation, base, deltas, router

    def forward(self, x):
        outputs = []
        for sample in x:
            hidden = (sample @ self.router["hidden_weight"].mT + self.router["hidden_bias"]).clamp_min(0)
            gates = (hidden @ self.router["weight"].mT + self.router["bias"]).mean(0)
            merged = {
                name: tensor + sum(g * delta[name] for g, delta in zip(gates, self.deltas, strict=True))
                for name, tensor in self.base.items()
            }
            inner = self.activation(sample @ merged["fc1.weight"].mT + merged["fc1.bias"])
            outputs.append(inner @ merged["fc2.weight"].mT + merged["fc2.bias"])
        return torch.stack(outputs)


def low_rank(delta, rank):
    U, S, Vh = torch.linalg.svd(delta.double(), full_matrices=False)
    return (U[:, :rank] * S[:rank] @ Vh[:rank]).float()


def naive_model(name, base, stored, tasks, routers):
    """Task arithmetic at 0.3, with a NaiveMLP in every block; ``routers``: block -> tensors."""
    tensors = {n: t + 0.3 * sum(stored[task][n] - t for task in tasks) for n, t in stored["base"].items()}
    model = naive.same_parameters(base.model(), tensors)
    for i, block in enumerate(BLOCKS):
        parts = [f"{fc}.{kind}" for fc in ("fc1", "fc2") for kind in ("weight", "bias")]
        origin = {part: stored["base"][f"{block}.mlp.{part}"] for part in parts}
        deltas = []
        for task in tasks:
            delta = {part: stored[task][f"{block}.mlp.{part}"] - origin[part] for part in parts}
            if name == "lora_wemoe":
                delta |= {p: low_rank(d, 4) for p, d in delta.items() if p.endswith("weight")}
            deltas.append(delta)
        layer = model.vision_model.encoder.layers[i]
        layer.mlp = NaiveMLP(layer.mlp.activation_fn, origin, deltas, routers[block])
    return model


def routers_of(step):
    return {b: {name: step.tensors["routers"][f"{b}.mlp.{name}"] for name in ROUTER} for b in BLOCKS}


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_the_model_is_the_dense_mixture(base, merge, stored, pool, name):
    method = build(name)
    state = merge(method)
    plain = naive_model(name, base, stored, TASKS, routers_of(state.steps[-1]))
    with torch.no_grad():
        expected = plain(**pool.batch).image_embeds
        found = method.model(state)(**pool.batch).image_embeds
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_routers_train_as_plain_autograd_says(base, merge, arrive, stored, pool, name):
    """Both steps: from the first start, and on from the first step's routers with a row for the new task."""
    state = merge(build(name), TASKS[:2])
    # Without steps the routers are as they start; the same seed draws the same numbers.
    routers = routers_of(merge(build(name, steps=0), TASKS[:1]).steps[0])
    for t, task in enumerate(TASKS[:2], start=1):
        for router in routers.values():
            if t == 2:
                router["weight"] = torch.cat([router["weight"], torch.zeros(1, 32)])
                router["bias"] = torch.cat([router["bias"], torch.tensor([0.3])])
            router.update({n: tensor.detach().requires_grad_() for n, tensor in router.items()})
        model = naive_model(name, base, stored, TASKS[:t], routers)
        adam = torch.optim.Adam([p for router in routers.values() for p in router.values()], lr=1e-2)
        entropies = []
        for _ in range(3):
            adam.zero_grad()
            logits = base.backbone.classify(model(**pool.batch).image_embeds, arrive(task).head)
            p = logits.softmax(-1)
            entropy = -(p * p.log()).sum(-1).mean()
            entropy.backward()
            adam.step()
            entropies.append(entropy.item())
        assert state.steps[t - 1].report["losses"] == pytest.approx(entropies, abs=1e-6)
        for block, found in routers_of(state.steps[t - 1]).items():
            for part, tensor in found.items():
                # Adam blows up the rounding of a gradient near zero, in a few of a thousand entries.
                gap = (tensor - routers[block][part].detach()).abs()
                assert gap.quantile(0.98) < 1e-6, (t, block, part)
                assert gap.max() < 1e-3


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_an_untrained_router_gives_every_expert_0_3(merge, pool, name):
    """With full rank that is task arithmetic in every tensor."""
    method = build(name, steps=0, **({"rank": 32} if name == "lora_wemoe" else {}))
    arithmetic = METHODS.get("task_arithmetic").with_preset()
    with torch.no_grad():
        found = method.model(merge(method))(**pool.batch).image_embeds
        expected = arithmetic.model(merge(arithmetic, seeds=None))(**pool.batch).image_embeds
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_whole_router_is_kept_and_trained_on(merge):
    trained, kept = merge(build("wemoe")), merge(build("wemoe", steps=0))
    for state, changes in ((trained, True), (kept, False)):
        for before, after in zip(state.steps, state.steps[1:], strict=False):
            for block, router in routers_of(before).items():
                later = routers_of(after)[block]
                assert torch.equal(later["weight"][:-1], router["weight"]) != changes
                assert torch.equal(later["hidden_weight"], router["hidden_weight"]) != changes


def test_a_low_rank_run_stores_low_ranks(merge):
    full, low = (merge(build(name)).steps[0].tensors["experts"] for name in METHOD_NAMES)
    assert full[f"{BLOCKS[0]}.mlp.fc1.weight"].shape == (48, 32)
    assert low[f"{BLOCKS[0]}.mlp.fc1.A"].shape == (4, 32)
    assert low[f"{BLOCKS[0]}.mlp.fc2.B"].shape == (32, 4)


def test_width_rule_and_presets(base):
    settings = METHODS.get("lora_wemoe").with_preset().settings(base)
    assert (settings["rank"], settings["lr"]) == (16, 1e-4)
    assert build("lora_wemoe").settings(base)["rank"] == 4
    for name in METHOD_NAMES:
        reference = METHODS.get(name).with_preset("reference")
        assert reference.scored_seeds
        assert reference.options.seeds == "label"
        assert not build(name).scored_seeds


def test_divergence_is_refused(merge):
    with pytest.raises(DivergedError, match=r"loss nan at step \d of 20, lr 1e\+30; use a smaller lr"):
        merge(build("lora_wemoe", lr=1e30, steps=20), TASKS[:1])
