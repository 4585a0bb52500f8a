"""The last model under other protocols: no task id, other gates, seeds left out; what it costs."""

import pytest
import torch

from mingle.backbones import Head, take
from mingle.evaluation import scored_tasks
from mingle.evaluation.final import final_metrics, gate_reduction, parameters
from mingle.layers import mixtures
from mingle.methods import METHODS, Arrival, SeedPool
from mingle.suites import open_suite

TASKS = ("task1", "task2", "task3")


@pytest.fixture
def tests(shared_suite, base):
    return scored_tasks(open_suite(shared_suite), TASKS, base)


EITHER = pytest.mark.parametrize("preset", ["default", "learned"])


def merged(base, suite, name, preset="default", rename=False, **options):
    """The state after three tasks; ``rename`` gives the classes of every task names of their own."""
    method = METHODS.get(name).with_preset(preset, options)
    state = method.init(base)
    for task in TASKS:
        checkpoint = base.backbone.open(suite.checkpoint(task))
        head = base.backbone.head(checkpoint)
        if rename:
            head = Head(tuple(f"{task} {c}" for c in head.classes), head.tensors)
        pool = SeedPool(base.backbone.prepare(suite.seeds(task), base.checkpoint))
        state = method.update(state, Arrival(task, checkpoint, head, pool, seed=3))
    return method, state


@torch.no_grad()
def naive_agnostic(base, model, state, tests):
    """One sample at a time, over all (task, class) pairs, by the cosine itself."""
    shares = []
    for step in state.steps:
        test, hits = tests[step.task], 0
        for i in range(len(test.labels)):
            feature = base.backbone.features(model, test.prepare(test.samples[i : i + 1]))[0]
            best, said = -torch.inf, None
            for other in state.steps:
                rows, scale = other.head.tensors["class_embeddings"], other.head.tensors["logit_scale"]
                for name, row in zip(other.head.classes, rows, strict=True):
                    score = float(scale * torch.cosine_similarity(feature, row, dim=0))
                    if score > best:
                        best, said = score, name
            hits += said == step.head.classes[int(test.labels[i])]
        shares.append(hits / len(test.labels))
    return sum(shares) / len(shares)


@pytest.mark.parametrize("rename", [False, True], ids=["equal names are one label", "own names"])
def test_no_task_id_and_the_union_of_labels(base, shared_suite, tests, rename):
    method, state = merged(base, open_suite(shared_suite), "average", rename=rename)
    metrics, _ = final_metrics(method, state, tests, used=())
    expected = naive_agnostic(base, method.model(state), state, tests)
    assert metrics["agnostic_acc"] == pytest.approx(expected)


def test_seeds_are_left_out_by_content(base, shared_suite, tests):
    method, state = merged(base, open_suite(shared_suite), "average")
    first = tests["task1"]
    with torch.no_grad():
        said = base.backbone.predict(method.model(state), first.batch, state.steps[0].head)
    right = [i for i, hit in enumerate((said == first.labels).tolist()) if hit]
    used = {first.ids[i] for i in range(24) if i not in right}
    metrics, _ = final_metrics(method, state, {"task1": first}, used)
    assert metrics["unseen_acc"] == 1
    everything, _ = final_metrics(method, state, {"task1": first}, set(first.ids))
    assert everything["unseen_acc"] is None


@pytest.mark.parametrize("name", ["nearest_subspace", "wemoe"])
def test_every_kind_of_gate_can_be_averaged_over_a_batch(base, shared_suite, tests, name):
    method, state = merged(base, open_suite(shared_suite), name, **({"steps": 1} if name == "wemoe" else {}))
    model, batch = method.model(state), tests["task1"].batch
    alone = base.backbone.features(model, batch).detach()
    with gate_reduction(model, "batch"), torch.no_grad():
        together = base.backbone.features(model, batch)
        part = base.backbone.features(model, take(batch, slice(0, 4)))
    assert not torch.allclose(alone, together, atol=1e-6)
    assert not torch.allclose(together[:4], part, atol=1e-6)
    torch.testing.assert_close(base.backbone.features(model, batch), alone)


@EITHER
def test_both_gate_reductions_of_the_same_weights(base, shared_suite, tests, preset):
    suite, changes = open_suite(shared_suite), {"steps": 3, "rank": 4, "lr": 0.05}
    method, state = merged(base, suite, "mingle", preset, **changes)
    metrics, _ = final_metrics(method, state, tests, used=())
    batch = METHODS.get("mingle").with_preset(preset, changes | {"gate_reduction": "batch"})
    other, _ = final_metrics(batch, state, tests, used=())
    assert metrics["sample_acc"] == metrics["unseen_acc"]
    assert other["batch_acc"] == other["unseen_acc"]
    assert (metrics["sample_acc"], metrics["batch_acc"]) == (other["sample_acc"], other["batch_acc"])


@EITHER
def test_a_reduction_is_put_back(base, shared_suite, preset):
    method, state = merged(base, open_suite(shared_suite), "mingle", preset, steps=1, rank=4)
    model = method.model(state)
    with gate_reduction(model, "batch"):
        assert {layer.gate.reduction for _, layer in mixtures(model)} == {"batch"}
    assert {layer.gate.reduction for _, layer in mixtures(model)} == {"sample"}


@pytest.mark.parametrize(
    ("preset", "gates"),
    [
        # A router reads three kinds of 32 numbers after the first block, and 1.
        ("default", 3 * 32 + 1),
        # Two blocks: q, k, v, out and fc1 read 32 numbers, fc2 reads 48; one bias each.
        ("learned", 2 * (5 * 33 + 49)),
    ],
)
def test_parameters_are_the_base_the_experts_and_the_gates(base, shared_suite, preset, gates):
    method, state = merged(base, open_suite(shared_suite), "mingle", preset, steps=1, rank=4)
    own = sum(tensor.numel() for tensor in base.tensors.values())
    experts = sum(t.numel() for step in state.steps for t in step.tensors["experts"].values())
    assert parameters(method.model(state)) == {
        "parameters": own + experts + 3 * gates,
        "gate_parameters": gates,
    }


def test_parameters_of_other_routers(base, shared_suite):
    own = sum(tensor.numel() for tensor in base.tensors.values())
    method, state = merged(base, open_suite(shared_suite), "nearest_subspace", rank=4)
    experts = sum(t.numel() for step in state.steps for t in step.tensors["experts"].values())
    assert parameters(method.model(state)) == {"parameters": own + experts, "gate_parameters": 0}
    method, state = merged(base, open_suite(shared_suite), "lora_wemoe", steps=1, rank=4)
    routers = sum(t.numel() for n, t in method.model(state).named_parameters() if ".router." in n)
    assert parameters(method.model(state))["gate_parameters"] == routers // 3 > 0
    assert parameters(base.model()) == {"parameters": own, "gate_parameters": 0}


def test_one_model_per_task_has_no_such_metrics(base, shared_suite, tests):
    method, state = merged(base, open_suite(shared_suite), "individual")
    metrics, cost = final_metrics(method, state, tests, used=())
    assert set(metrics.values()) == {None}
    assert cost == {}
