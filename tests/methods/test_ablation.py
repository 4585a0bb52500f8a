"""The rows of the ablation are what they say: what trains, what stays, what is protected."""

import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import log_softmax

from mingle.layers import mixtures
from mingle.methods import METHODS
from mingle.methods._mingle_options import MingleReplay

from .conftest import TASKS

QUICK = {"steps": 5, "rank": 4, "lr": 1e-2}


def build(preset, **changes):
    return METHODS.get("mingle").with_preset(preset, QUICK | changes)


def rows(state, step):
    """name -> (t, d_in + 1) gate rows of all tasks, as the model after that step has them."""
    model = build("ablation_adaptation").model(state.prefix(step))
    return {n: torch.cat([g.gate.weight, g.gate.bias[:, None]], 1) for n, g in mixtures(model)}


def test_trained_old_gates_change_and_the_newest_step_holds_all_of_them(merge):
    state = merge(build("ablation_adaptation"))
    for t, step in enumerate(state.steps, start=1):
        gates = step.tensors["gates"]
        assert {tensor.shape[0] for tensor in gates.values()} == {t}
    for name, before in rows(state, 2).items():
        after = rows(state, 3)[name]
        assert after.shape[0] == 3
        assert (after[:2] - before).abs().amax(1).min() > 1e-4, name


@pytest.mark.parametrize("preset", ["ablation_frozen", "ablation_hard", "learned"])
def test_frozen_old_gates_stay_bit_for_bit(merge, preset):
    method = build(preset)
    state = merge(method)
    early, late = (dict(mixtures(method.model(state.prefix(t)))) for t in (2, 3))
    for name, layer in early.items():
        assert torch.equal(late[name].gate.weight[:2], layer.gate.weight)
        assert torch.equal(late[name].gate.bias[:2], layer.gate.bias)


def inside(state):
    """Largest |[w; c]·u| of a step's gates with the directions of the steps before it."""
    found = []
    for t, step in enumerate(state.steps[1:], start=1):
        for group in step.tensors["subspace"]:
            basis = torch.cat([s.tensors["subspace"][group] for s in state.steps[:t]], dim=1)
            gates = step.tensors["gates"]
            row = torch.cat([gates[f"{group}.weight"], gates[f"{group}.bias"][None]])
            found.append((row @ basis).abs().max())
    return torch.stack(found)


def test_only_the_hard_null_space_keeps_every_protected_product(merge):
    found = {p: inside(merge(build(p))) for p in ("ablation_hard", "learned", "ablation_frozen")}
    assert found["ablation_hard"].max() < 1e-6
    assert 1e-6 < found["learned"].mean() < found["ablation_frozen"].mean()


def test_all_gates_train_as_plain_adam_does(base, merge, arrive, pool):
    """The second step, from the first step's gates, over explicit gate rows and plain autograd."""
    seeds, batches = torch.arange(20), [torch.arange(i, i + 5) for i in (0, 5, 10)]
    replay = MingleReplay(seeds=seeds, batches=batches)
    method = build("ablation_adaptation")
    state = merge(method, TASKS[:2], replay=replay)
    model, head = method.model(state), arrive(TASKS[1]).head
    first = state.steps[0].tensors["gates"]
    rows = {
        name.replace(".weight", ".gate.weight").replace(".bias", ".gate.bias"): torch.cat(
            [tensor, torch.zeros_like(tensor)]
        ).requires_grad_()
        for name, tensor in first.items()
    }
    pixels = pool.batch["pixel_values"][seeds]
    teacher = base.backbone.build(arrive(TASKS[1]).checkpoint)(pixels).image_embeds
    target = log_softmax(base.backbone.classify(teacher, head) / 2, -1)
    adam = torch.optim.Adam(rows.values(), lr=1e-2)
    for index in batches:
        adam.zero_grad()
        embeds = functional_call(model, rows, (pixels[index],)).image_embeds
        said = log_softmax(base.backbone.classify(embeds, head) / 2, -1)
        (target[index].exp() * (target[index] - said)).sum(-1).mean().backward()
        adam.step()
    for name, tensor in state.steps[1].tensors["gates"].items():
        stem, kind = name.rsplit(".", 1)
        torch.testing.assert_close(tensor, rows[f"{stem}.gate.{kind}"].detach(), atol=1e-6, rtol=0)


def test_light_presets_are_the_light_sites_of_their_protocols(base):
    paper, reference = (METHODS.get("mingle").with_preset(f"light_{p}") for p in ("paper", "reference"))
    assert (paper.options.sites, reference.options.sites) == ("light", "light+out")
    for light, full in ((paper, "paper"), (reference, "reference")):
        settings = METHODS.get("mingle").with_preset(full).settings(base)
        assert light.settings(base) == settings | {"sites": light.options.sites}
