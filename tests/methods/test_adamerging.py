"""Coefficients, weights and entropies against plain autograd over an explicit dictionary of weights."""

import dataclasses

import pytest
import torch
from torch.func import functional_call

from mingle.errors import DivergedError, SeedsError
from mingle.methods import METHODS

TASKS = ("task1", "task2", "task3")


def build(preset="default", **changes):
    # All forty samples in every batch: nothing depends on what was drawn.
    everything = {"seeds_per_class": 10, "batch_size": 40, "steps": 3}
    return METHODS.get("adamerging").with_preset(preset, everything | changes)


def naive_step(base, start, deltas, pool, head, *, steps, lr):
    """Adam (β 0.9, 0.999, ε 1e-8) on one coefficient per tensor; the entropy class by class."""
    model = base.model()
    coefficients = {name: torch.tensor(0.3) for name in deltas}
    m, v = dict.fromkeys(deltas, 0.0), dict.fromkeys(deltas, 0.0)
    entropies = []
    for t in range(1, steps + 1):
        for value in coefficients.values():
            value.requires_grad_()
        weights = {name: start[name] + coefficients[name] * deltas[name] for name in deltas}
        embeds = functional_call(model, weights, (pool.batch["pixel_values"],)).image_embeds
        p = base.backbone.classify(embeds, head).softmax(-1)
        entropy = sum(-(q * q.log()).sum() for q in p) / len(p)
        gradients = torch.autograd.grad(entropy, list(coefficients.values()), materialize_grads=True)
        entropies.append(float(entropy.detach()))
        for (name, value), g in zip(coefficients.items(), gradients, strict=True):
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g**2
            step = lr * (m[name] / (1 - 0.9**t)) / ((v[name] / (1 - 0.999**t)).sqrt() + 1e-8)
            coefficients[name] = value.detach() - step
    return {name: value.item() for name, value in coefficients.items()}, entropies


@pytest.mark.parametrize(("preset", "restarts"), [("default", False), ("reference", True)])
def test_every_step_is_that_of_plain_autograd(base, merge, arrive, stored, pool, preset, restarts):
    lr = 1e-2
    state = merge(build(preset, lr=lr), TASKS[:2])
    start = stored["base"]
    for task, step in zip(TASKS, state.steps, strict=False):
        deltas = {name: stored[task][name] - stored["base"][name] for name in sorted(stored["base"])}
        coefficients, entropies = naive_step(base, start, deltas, pool, arrive(task).head, steps=3, lr=lr)
        assert step.report["losses"] == pytest.approx(entropies, abs=1e-6)
        found = step.report["coefficients"]
        assert found.keys() == deltas.keys()
        for name, delta in deltas.items():
            # Attention does not depend on the bias of its keys: Adam makes steps of what is only rounding.
            if not name.endswith("k_proj.bias"):
                assert found[name] == pytest.approx(coefficients[name], abs=1e-6), name
            expected = start[name] + found[name] * delta
            torch.testing.assert_close(step.tensors["weights"][name], expected, atol=1e-6, rtol=0)
        start = stored["base"] if restarts else step.tensors["weights"]
    moved = [abs(value - 0.3) for value in state.steps[1].report["coefficients"].values()]
    assert max(moved) > 0.5 * lr


def test_a_restart_keeps_the_newest_task_only(merge):
    alone = merge(build("reference", steps=0), TASKS[1:2])
    after = merge(build("reference", steps=0), TASKS[:2])
    continual = merge(build(steps=0), TASKS[:2])
    for name, tensor in alone.steps[0].tensors["weights"].items():
        assert torch.equal(after.steps[1].tensors["weights"][name], tensor)
    assert any(
        not torch.equal(continual.steps[1].tensors["weights"][name], tensor)
        for name, tensor in alone.steps[0].tensors["weights"].items()
    )


def test_untrained_coefficients_are_task_arithmetic(base, merge):
    state = merge(build(steps=0))
    expected = merge(METHODS.get("task_arithmetic").with_preset())
    for name, tensor in state.steps[-1].tensors["weights"].items():
        torch.testing.assert_close(tensor, expected.steps[-1].tensors["weights"][name], atol=1e-6, rtol=0)


def test_training_makes_the_model_surer(merge):
    losses = merge(build(steps=40, lr=1e-2), TASKS[:1]).steps[0].report["losses"]
    assert losses[-1] < losses[0] - 1e-3


def test_labels_are_used_only_to_balance(merge, pool):
    shuffled = dataclasses.replace(pool, labels=pool.labels.flip(0))
    method = build(seeds_per_class=2)
    one, two = (merge(method, TASKS[:1], seeds=seeds).steps[0].report for seeds in (pool, shuffled))
    assert one == two
    ids = merge(build("reference", seeds_per_class=2), TASKS[:1]).steps[0].report["seeds"]["ids"]
    assert sorted(int(i[2:]) % 4 for i in ids) == [0, 0, 1, 1, 2, 2, 3, 3]
    with pytest.raises(SeedsError, match="'label' needs labels"):
        merge(build("reference"), TASKS[:1], seeds=dataclasses.replace(pool, labels=None))


def test_presets_say_what_they_are():
    settings = {preset: build(preset).options for preset in ("default", "reference")}
    assert (settings["default"].start, settings["reference"].start) == ("merged", "base")
    defaults = METHODS.get("adamerging").with_preset().options
    assert (defaults.lr, defaults.steps, defaults.batch_size, defaults.coefficient) == (1e-4, 50, 16, 0.3)
    assert build("reference").scored_seeds
    assert not build().scored_seeds


def test_divergence_is_refused(merge):
    with pytest.raises(DivergedError, match=r"loss nan at step \d of 20, lr 1e\+30; use a smaller lr"):
        merge(build(lr=1e30, steps=20), TASKS[:1])
