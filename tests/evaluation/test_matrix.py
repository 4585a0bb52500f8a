"""Scores against loops that classify one sample at a time."""

from dataclasses import replace

import pytest
import torch

from mingle.errors import CheckpointError
from mingle.evaluation import accuracy, accuracy_matrix, gate_activations, mixed_accuracy, scored_tasks
from mingle.evaluation import matrix as matrix_module
from mingle.evaluation.matrix import held_out_accuracy, predictions
from mingle.layers import mixtures
from mingle.layers.router import SharedGate
from mingle.methods import METHODS
from mingle.suites import RawSamples, open_suite

from ..suites.conftest import TASKS

METHOD_NAMES = METHODS.names()
EITHER = pytest.mark.parametrize("preset", ["default", "learned"])


@torch.no_grad()
def classified(model, head, image):
    """The class of one sample: the largest s · cos(f(x), e_c)."""
    f = model(image[None]).image_embeds[0].double()
    e = head.tensors["class_embeddings"].double()
    cosines = [float(f @ c / (f.norm() * c.norm())) for c in e]
    return cosines.index(max(cosines))


def share(model, head, test):
    pixels = test.batch["pixel_values"]
    right = [classified(model, head, x) == int(y) for x, y in zip(pixels, test.labels, strict=True)]
    return sum(right) / len(right)


@pytest.mark.parametrize(("name", "preset"), [*((n, "default") for n in METHOD_NAMES), ("mingle", "learned")])
def test_matrix_holds_every_step_on_every_task_so_far(merged, tests, name, preset):
    method, state = merged(name, preset)
    expected = []
    for t in range(1, 4):
        current = state.prefix(t)
        expected.append(
            [share(method.model(current, step.task), step.head, tests[step.task]) for step in current.steps]
        )
    found = accuracy_matrix(method, state, tests)
    assert [len(row) for row in found] == [1, 2, 3]
    for row, reference in zip(found, expected, strict=True):
        assert row == pytest.approx(reference)
    assert len({value for row in found for value in row}) > 2


def test_a_method_that_cannot_forget_keeps_its_columns(merged, tests):
    for name in METHOD_NAMES:
        method, state = merged(name)
        found = accuracy_matrix(method, state, tests)
        constant = all(found[t][i] == found[i][i] for t in range(3) for i in range(t + 1))
        assert constant or method.forgets


def test_progress_of_scoring_reaches_its_end(merged, tests):
    for name in METHOD_NAMES:
        method, state = merged(name)
        told = []
        accuracy_matrix(method, state, tests, lambda what, done, total, told=told: told.append((done, total)))
        total = 6 if method.forgets else 3
        assert told == [(i, total) for i in range(1, total + 1)]


def test_batches_do_not_change_scores(merged, tests, monkeypatch):
    method, state = merged("mingle")
    whole = accuracy_matrix(method, state, tests)
    monkeypatch.setattr(matrix_module, "BATCH", 3)
    assert accuracy_matrix(method, state, tests) == whole
    model, head, test = method.model(state), state.steps[2].head, tests["task3"]
    expected = [classified(model, head, x) for x in test.batch["pixel_values"]]
    assert predictions(state.base.backbone, model, head, test.batches(3)).tolist() == expected
    share = sum(p == y for p, y in zip(expected, test.labels.tolist(), strict=True)) / len(expected)
    assert accuracy(state.base.backbone, model, head, test) == pytest.approx(share)


@pytest.mark.parametrize("name", [n for n in METHOD_NAMES if not METHODS.get(n).needs_task])
def test_mixed_stream_is_the_mean_over_tasks_of_one_model(merged, tests, name):
    method, state = merged(name)
    model = method.model(state)
    expected = sum(share(model, step.head, tests[step.task]) for step in state.steps) / 3
    for seed in (0, 1):
        assert mixed_accuracy(method, state, tests, seed=seed) == pytest.approx(expected)


def test_mixed_stream_shuffles_tasks_into_the_same_batches(merged, tests, monkeypatch):
    monkeypatch.setattr(matrix_module, "BATCH", 8)
    method, state = merged("mingle")
    owners = {
        tuple(x.flatten()[:3].tolist()): task
        for task, test in tests.items()
        for x in test.batch["pixel_values"]
    }
    batches = []
    real = state.base.backbone.features

    def watch(model, batch):
        batches.append([owners[tuple(x.flatten()[:3].tolist())] for x in batch["pixel_values"]])
        return real(model, batch)

    monkeypatch.setattr(type(state.base.backbone), "features", lambda self, model, batch: watch(model, batch))
    mixed_accuracy(method, state, tests)
    shown = sorted(task for batch in batches for task in batch)
    assert shown == sorted(task for task, test in tests.items() for _ in test.labels)
    assert any(len(set(batch)) == 3 for batch in batches)


def test_batch_gates_see_the_mixture(merged, tests):
    """With gates averaged over the batch, a mixed stream is another question, and it shows in the gates."""
    method, state = merged("mingle", "reference", lr=3e-2, steps=10)
    model = method.model(state)
    layer = next(iter(dict(mixtures(model)).values()))
    seen = []
    layer.gate.register_forward_hook(lambda module, args, gates: seen.append(gates[0]))
    with torch.no_grad():
        one, two = (tests[task].batch["pixel_values"] for task in TASKS[:2])
        model(one)
        model(torch.cat([one, two]))
    assert not torch.equal(*seen)


def test_methods_that_must_be_told_the_task_have_no_mixed_stream(merged, tests):
    asked = [name for name in METHOD_NAMES if METHODS.get(name).needs_task]
    assert "individual" in asked
    for name in asked:
        assert mixed_accuracy(*merged(name), tests) is None


def test_task_without_a_head_cannot_be_scored(merged, tests, base, zoo):
    method = METHODS.get("average").with_preset()
    from mingle.methods import Arrival

    state = method.update(method.init(base), Arrival("task1", base.backbone.open(zoo / "task1")))
    for score in (accuracy_matrix, mixed_accuracy):
        with pytest.raises(CheckpointError, match="task 'task1' was added without a class head"):
            score(method, state, tests)


# --- the scored samples


def test_a_head_of_other_classes_is_noticed_before_anything_is_scored(merged, tests, monkeypatch):
    method, state = merged("average")
    labels = tests["task2"].labels.clone()
    labels[3] = 4
    monkeypatch.setattr(matrix_module, "accuracy", None)
    with pytest.raises(
        CheckpointError, match="test samples of 'task2': labels 0…4, but the head has 4 classes"
    ):
        accuracy_matrix(method, state, {**tests, "task2": replace(tests["task2"], labels=labels)})


def test_seeds_are_left_out_by_content(tests):
    test = tests["task2"]
    used = {test.ids[3], test.ids[0], tests["task1"].ids[0], "something else"}
    kept = test.without(used)
    places = [i for i in range(len(test.ids)) if i not in (0, 3)]
    assert kept.ids == tuple(test.ids[i] for i in places)
    assert torch.equal(kept.labels, test.labels[places])
    assert torch.equal(kept.batch["pixel_values"], test.batch["pixel_values"][places])
    assert len(test.ids) == 11
    assert test.without(set()) is test


def test_suite_is_scored_whole_or_evenly_thinned(suite_folder, base):
    suite = open_suite(suite_folder)
    whole = scored_tasks(suite, TASKS[:2], base)
    assert list(whole) == list(TASKS[:2])
    images, labels = suite.test("task2")
    expected = base.backbone.prepare(images, base.checkpoint)["pixel_values"]
    assert torch.equal(whole["task2"].batch["pixel_values"], expected)
    assert torch.equal(whole["task2"].labels, labels)
    assert whole["task2"].ids == RawSamples(images).ids()
    thin = scored_tasks(suite, TASKS[:2], base, limit=5)["task2"]
    # 24 samples, 5 wanted: every 4.8th, rounded down.
    places = [0, 4, 9, 14, 19]
    assert thin.ids == tuple(whole["task2"].ids[i] for i in places)
    assert torch.equal(thin.labels, labels[places])
    assert torch.equal(thin.batch["pixel_values"], expected[places])
    assert scored_tasks(suite, TASKS[:1], base, limit=99)["task1"].ids == whole["task1"].ids


# --- held-out tasks


def test_held_out_tasks_are_those_that_come_later(merged, tests):
    method, state = merged("average")
    model = method.model(state.prefix(1))
    expected = [share(model, step.head, tests[step.task]) for step in state.steps[1:]]
    assert held_out_accuracy(method, state, tests, 1) == pytest.approx(sum(expected) / 2)
    assert held_out_accuracy(method, state, tests, 3) is None
    assert held_out_accuracy(*merged("oracle"), tests, 1) is None


# --- gates


def heads_of(state):
    return {step.task: step.head for step in state.steps}


@EITHER
def test_gate_activations_are_mean_gates_by_task(merged, tests, monkeypatch, preset):
    method, state = merged("mingle", preset, lr=1e-2, steps=5)
    model = method.model(state)
    found = gate_activations(state.base.backbone, model, heads_of(state), tests)
    layers = dict(mixtures(model))
    assert (found.layers, found.inputs, found.experts) == (list(layers), list(TASKS), list(TASKS))
    inputs = {}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs.__setitem__(name, args[0].double()))
    for j, test in enumerate(tests.values()):
        with torch.no_grad():
            model(test.batch["pixel_values"])
        for i, gates in enumerate(gates_of(layers, inputs)):
            assert found.mean[i][j] == pytest.approx(gates.mean(0).tolist(), abs=1e-6)
        assert found.strongest[j] == pytest.approx(naive_confusion(layers, inputs).tolist())
        assert found.routed[j] == pytest.approx(naive_routed(method, state, test, layers, inputs))
    assert found.router_accuracy == pytest.approx(sum(found.strongest[i][i] for i in range(3)) / 3)
    assert found.routed_accuracy == pytest.approx(sum(found.routed) / 3)
    spread = torch.tensor(found.mean)
    assert spread.shape == (len(layers), 3, 3)
    assert spread.abs().max() > 1e-3
    monkeypatch.setattr("mingle.evaluation.gates.BATCH", 4)
    again = gate_activations(state.base.backbone, method.model(state), heads_of(state), tests)
    torch.testing.assert_close(torch.tensor(again.mean), spread, atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.tensor(again.strongest), torch.tensor(found.strongest))
    assert again.routed == pytest.approx(found.routed)


def gates_of(layers, inputs):
    """(layers, N, T): those of every token, in the mean over tokens; of a router, what it just said."""
    return torch.stack(
        [
            layer.gate.values.double()
            if isinstance(layer.gate, SharedGate)
            else (inputs[name] @ layer.gate.weight.double().mT + layer.gate.bias.double()).mean(1)
            for name, layer in layers.items()
        ]
    )


def naive_confusion(layers, inputs):
    winners = gates_of(layers, inputs).abs().argmax(-1)
    return torch.stack([(winners == task).double().mean() for task in range(3)])


def naive_routed(method, state, test, layers, inputs):
    chosen, hits, model = gates_of(layers, inputs).abs().mean(0).argmax(-1), 0, method.model(state)
    own = heads_of(state)[test.task]
    for x, y, expert in zip(test.batch["pixel_values"], test.labels.tolist(), chosen.tolist(), strict=True):
        head = state.steps[expert].head
        hits += head.classes[classified(model, head, x)] == own.classes[y]
    return hits / len(test.labels)


@EITHER
def test_watching_gates_leaves_no_hooks(merged, tests, preset):
    method, state = merged("mingle", preset)
    model = method.model(state)

    def hooks():
        return [(*module._forward_hooks, *module._forward_pre_hooks) for module in model.modules()]

    # A router is called by a hook of its own.
    before = hooks()
    assert sum(map(len, before)) == {"default": 1, "learned": 0}[preset]
    gate_activations(state.base.backbone, model, heads_of(state), tests)
    assert hooks() == before


@pytest.mark.parametrize("vectors", ["dropped", "gated"])
def test_static_gates_are_seen_as_they_are(merged, tests, vectors):
    method, state = merged("mingle", "static", vectors=vectors)
    found = gate_activations(state.base.backbone, method.model(state), heads_of(state), tests)
    torch.testing.assert_close(torch.tensor(found.mean), torch.full((12, 3, 3), 0.3), atol=1e-6, rtol=0)


def test_models_without_mixtures_have_no_gates(merged, tests):
    method, state = merged("average")
    assert gate_activations(state.base.backbone, method.model(state), heads_of(state), tests) is None
