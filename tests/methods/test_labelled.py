"""What trains on labels: MINGLE-Seq and the sequentially fine-tuned bound, against plain training loops."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from mingle.adaptation import draw_batches
from mingle.errors import DivergedError, SeedsError
from mingle.layers import mixtures
from mingle.methods import METHODS
from mingle.methods._seed_samples import derived_generator

from .conftest import TASKS

STEPS, BATCH = 4, 8


def build(name, **changes):
    rank = {"rank": 4} if name == "mingle_seq" else {}
    return METHODS.get(name).with_preset(changes={"steps": STEPS, "batch_size": BATCH} | rank | changes)


def entropy(base, pool, head, embeds, index):
    return cross_entropy(base.backbone.classify(embeds, head), pool.labels[index])


def test_sequential_is_a_plain_training_loop_over_all_tasks(base, merge, arrive, pool):
    state = merge(build("sequential", lr=1e-3), TASKS[:2])
    model = base.backbone.load(base.model(), {n: t.clone() for n, t in base.tensors.items()})
    trained = [p.requires_grad_() for n, p in model.named_parameters() if n != "visual_projection.weight"]
    for t, task in enumerate(TASKS[:2]):
        arrival = arrive(task)
        adam = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.01)
        losses = []
        for index in draw_batches(40, BATCH, STEPS, derived_generator(arrival, t)):
            adam.zero_grad()
            embeds = model(pool.batch["pixel_values"][index]).image_embeds
            loss = entropy(base, pool, arrival.head, embeds, index)
            loss.backward()
            adam.step()
            losses.append(loss.item())
        assert state.steps[t].report["losses"] == pytest.approx(losses, abs=1e-6)
        for name, parameter in model.named_parameters():
            found = state.steps[t].tensors["weights"][name]
            torch.testing.assert_close(found, parameter.detach(), atol=1e-6, rtol=0)
    projection = state.steps[1].tensors["weights"]["visual_projection.weight"]
    assert torch.equal(projection, base.tensors["visual_projection.weight"])


def test_seq_trains_factors_and_gates_as_plain_adam_does(base, merge, arrive, pool):
    """The first task: nothing is protected yet."""
    lr = 1e-2
    state = merge(build("mingle_seq", lr=lr), TASKS[:1])
    method = build("mingle_seq", lr=lr, steps=0)
    start = merge(method, TASKS[:1])
    model, arrival = method.model(start), arrive(TASKS[0])
    leaves = {}
    for name, layer in mixtures(model):
        tensors = {"A": layer.A, "B": layer.B, "gate.weight": layer.gate.weight, "gate.bias": layer.gate.bias}
        leaves |= {f"{name}.{part}": nn.Parameter(tensor.clone()) for part, tensor in tensors.items()}
    adam = torch.optim.Adam(leaves.values(), lr=lr)
    for index in draw_batches(40, BATCH, STEPS, derived_generator(arrival, 0)):
        adam.zero_grad()
        embeds = functional_call(model, leaves, (pool.batch["pixel_values"][index],)).image_embeds
        entropy(base, pool, arrival.head, embeds, index).backward()
        adam.step()
    tensors = state.steps[0].tensors
    for name, layer in mixtures(model):
        for kind in ("A", "B"):
            found = tensors["experts"][f"{name}.{kind}"]
            torch.testing.assert_close(found, leaves[f"{name}.{kind}"].detach(), atol=1e-6, rtol=0)
            assert (found - getattr(layer, kind)).abs().max() > 1e-4
        for kind in ("weight", "bias"):
            found = tensors["gates"][f"{name}.{kind}"]
            torch.testing.assert_close(found, leaves[f"{name}.gate.{kind}"].detach()[0], atol=1e-6, rtol=0)


def test_seq_starts_from_the_experts_of_mingle(merge):
    experts = merge(build("mingle_seq", steps=0)).steps[2].tensors["experts"]
    static = METHODS.get("mingle").with_preset("static", {"rank": 4})
    for name, tensor in merge(static, seeds=None).steps[2].tensors["experts"].items():
        assert torch.equal(experts[name], tensor)


def test_seq_leaves_earlier_experts_and_protected_products_alone(merge):
    state = merge(build("mingle_seq", lr=1e-2, steps=10), TASKS[:2])
    method = build("mingle_seq")
    late = dict(mixtures(method.model(state)))
    for name, layer in mixtures(method.model(state.prefix(1))):
        assert torch.equal(late[name].A[:4], layer.A)
        assert torch.equal(late[name].B[:, :4], layer.B)
        assert torch.equal(late[name].gate.weight[:1], layer.gate.weight)
    first, second = (step.tensors for step in state.steps)
    for group, basis in first["subspace"].items():
        row = torch.cat([second["gates"][f"{group}.weight"], second["gates"][f"{group}.bias"][None]])
        assert (row @ basis).abs().max() < 1e-6
        assert row.norm() > 1e-3


@pytest.mark.parametrize(("name", "lr"), [("mingle_seq", 1e-2), ("sequential", 1e-3)])
def test_labels_are_learnt(merge, pool, name, lr):
    losses = merge(build(name, lr=lr, steps=60, batch_size=40), TASKS[:1]).steps[0].report["losses"]
    assert losses[-1] < 0.7 * losses[0]
    shuffled = dataclasses.replace(pool, labels=pool.labels.roll(1))
    other = merge(build(name, lr=lr, steps=1, batch_size=40), TASKS[:1], seeds=shuffled).steps[0].report
    assert other["losses"][0] != pytest.approx(losses[0], abs=1e-3)
    assert other["seeds"]["used"] == 40


@pytest.mark.parametrize("name", ["mingle_seq", "sequential"])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "'task1': this method trains on labelled samples; .* found 40 samples and none labels"),
        (torch.zeros(39, dtype=torch.int64), "found 40 samples and 39 labels"),
        (torch.full((40,), 4), "expected labels from 0 to 3, the classes of the head, found 4 to 4"),
    ],
)
def test_labels_are_required_and_checked(merge, pool, name, labels, message):
    with pytest.raises(SeedsError, match=message):
        merge(build(name), TASKS[:1], seeds=dataclasses.replace(pool, labels=labels))


def test_who_trains_on_labels_says_so():
    needs = {n: METHODS.get(n).with_preset().needs_labels for n in ("mingle_seq", "sequential", "mingle")}
    assert needs == {"mingle_seq": True, "sequential": True, "mingle": False}
    # Labels that only balance the seeds are not trained on.
    assert not METHODS.get("mingle").with_preset("reference").needs_labels


@pytest.mark.parametrize("name", ["mingle_seq", "sequential"])
def test_divergence_is_refused(merge, name):
    with pytest.raises(DivergedError, match=r"use a smaller lr"):
        merge(build(name, lr=1e30, steps=20), TASKS[:1])


def test_width_rules_and_defaults(base):
    seq = METHODS.get("mingle_seq").with_preset().settings(base)
    assert (seq["rank"], seq["lr"], seq["steps"], seq["batch_size"]) == (16, 1e-4, 500, 16)
    assert seq["null_space"] == "hard"
    assert METHODS.get("sequential").with_preset().settings(base)["lr"] == 5.76e-3
    assert build("sequential", lr=0.5).settings(base)["lr"] == 0.5
