"""One evaluation of one run on disk: what is left out, what is kept, what follows."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mingle.errors import CheckpointError, ConfigError
from mingle.evaluation import (
    accuracy_matrix,
    average_accuracy,
    backward_transfer,
    evaluate_run,
    forward_transfer,
    individual_accuracies,
    mixed_accuracy,
    normalised_accuracy,
    relative_metrics,
    scored_tasks,
)
from mingle.evaluation.final import final_metrics
from mingle.evaluation.gates import gate_activations
from mingle.evaluation.matrix import held_out_accuracy
from mingle.evaluation.metrics import h_score
from mingle.state import MergeRun
from mingle.suites import RawSamples, open_suite

from ..suites.conftest import TASKS, random_images


@pytest.fixture
def overlapping(suite_folder):
    """The suite with five test images of each task among its seeds (and one of another task)."""
    stray = load_file(suite_folder / "data" / "task3.safetensors")["test_images"][:1]
    for task in TASKS:
        file = suite_folder / "data" / f"{task}.safetensors"
        data = load_file(file)
        seeds = torch.cat([data["test_images"][4:9], random_images(77, 6), stray])
        save_file(data | {"seed_images": seeds}, file)
    return open_suite(suite_folder)


def start(path, suite, zoo, method="mingle", preset="default", tasks=TASKS, **options):
    quick = {"steps": 3, "rank": 4, "seeds_per_class": 99} if method == "mingle" else {}
    run = MergeRun.create(path, zoo / "base", method=method, preset=preset, options=quick | options)
    for task in tasks:
        images, labels = suite.seeds(task), torch.arange(12) % 4
        run.add(suite.checkpoint(task), name=task, seeds=images, labels=labels)
    return run


def score(run, suite, base, **more):
    tests = scored_tasks(suite, TASKS, base)
    individual = individual_accuracies(suite, base, tests)
    return evaluate_run(run, tests, **more), tests, individual


def test_samples_that_were_seeds_are_not_scored(tmp_path, overlapping, zoo, base):
    run = start(tmp_path / "run", overlapping, zoo)
    found, tests, individual = score(run, overlapping, base)
    # Five of its own each; the stray image of task 3 counts wherever it was used.
    assert found.seed_samples["excluded_from_score"] == 5 + 5 + 6
    assert found.seed_samples["used"] == [12, 12, 12]
    left = {}
    for task, test in tests.items():
        dropped = {4, 5, 6, 7, 8} | ({0} if task == "task3" else set())
        places = [i for i in range(24) if i not in dropped]
        ids = {test.ids[i] for i in dropped}
        left[task] = test.without(ids)
        assert torch.equal(left[task].labels, test.labels[places])
    expected = accuracy_matrix(run.method, run.state, left)
    assert found.matrix == expected
    further, _ = final_metrics(run.method, run.state, left, used=())
    heads = {step.task: step.head for step in run.state.steps}
    gates = gate_activations(base.backbone, run.method.model(run.state), heads, left)
    assert found.gates == gates._asdict()
    assert found.metrics == {
        "acc": average_accuracy(expected),
        "bwt": backward_transfer(expected),
        "mixed_acc": mixed_accuracy(run.method, run.state, left),
        "h_score": h_score(average_accuracy(expected[:2]), held_out_accuracy(run.method, run.state, left, 2)),
        "router_acc": gates.router_accuracy,
        "routed_acc": gates.routed_accuracy,
        **further,
    }
    own = list(individual.values())
    assert relative_metrics(expected, own) == {
        "fwt": forward_transfer(expected, own),
        "normalised_acc": normalised_accuracy(expected, own),
    }


def test_samples_that_were_seeds_are_scored_where_the_protocol_says_so(tmp_path, overlapping, zoo, base):
    run = start(tmp_path / "run", overlapping, zoo, seed_pool="scored")
    found, tests, _ = score(run, overlapping, base)
    assert found.seed_samples["excluded_from_score"] == 0
    assert found.matrix == accuracy_matrix(run.method, run.state, tests)
    used = {i for step in run.state.steps for i in step.report["seeds"]["ids"]}
    left = {task: test.without(used) for task, test in tests.items()}
    unseen = average_accuracy(accuracy_matrix(run.method, run.state, left))
    assert found.metrics["unseen_acc"] == pytest.approx(unseen)
    assert found.metrics["acc"] != pytest.approx(unseen)


def test_only_seeds_that_were_drawn_are_left_out(tmp_path, overlapping, zoo, base):
    run = start(tmp_path / "run", overlapping, zoo, tasks=TASKS[:1], seeds_per_class=1)
    ids = run.state.steps[0].report["seeds"]["ids"]
    assert len(ids) == 4
    drawn = set(ids) & set(RawSamples(overlapping.test("task1")[0]).ids())
    found, _, _ = score(run, overlapping, base)
    assert found.seed_samples["excluded_from_score"] == len(drawn) < 5


@pytest.mark.parametrize(
    ("preset", "label", "losses"),
    [("default", "mingle", None), ("learned", "mingle (learned)", [3, 3, 3])],
)
def test_results_are_plain_values_with_everything_needed(
    tmp_path, overlapping, zoo, base, preset, label, losses
):
    run = start(tmp_path / "run", overlapping, zoo, preset=preset)
    found, _, _ = score(run, overlapping, base)
    plain = found.as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False))["matrix"] == found.matrix
    assert (found.label, found.method, found.preset, found.one_model) == (label, "mingle", preset, True)
    assert found.tasks == TASKS
    assert found.settings == run.method.settings(base)
    assert (found.losses and [len(step) for step in found.losses]) == losses
    assert [energy["task"] for energy in found.energy] == list(TASKS)
    for energy in found.energy:
        assert sum(energy[p] for p in ("kept", "projection", "rank", "not_merged")) == pytest.approx(1)
    assert found.gates["experts"] == list(TASKS)
    assert found.bytes == run.size_bytes() > 0
    assert found.step_seconds == [run.info(task)["seconds"] for task in TASKS]
    assert found.samples_per_task == 19
    assert found.cost["images_per_second"] > 0
    timing = [step.report["timing"]["adaptation"] for step in run.state.steps]
    assert found.cost["adaptation_seconds"] == sum(timing) > 0


@pytest.mark.parametrize("method", ["individual", "average", "pretrained"])
def test_methods_without_seeds_gates_or_experts(tmp_path, overlapping, zoo, base, method):
    run = start(tmp_path / "run", overlapping, zoo, method=method)
    found, tests, individual = score(run, overlapping, base)
    assert (found.seed_samples, found.energy, found.losses, found.gates) == (None,) * 4
    assert found.matrix == accuracy_matrix(run.method, run.state, tests)
    assert found.one_model == (method != "individual")
    if method == "individual":
        assert found.matrix[-1] == list(individual.values())
        assert found.metrics["mixed_acc"] is None
        own = relative_metrics(found.matrix, list(individual.values()))
        assert own == {"fwt": 0, "normalised_acc": pytest.approx(1)}


def test_label_says_the_preset_unless_it_is_the_default(tmp_path, overlapping, zoo, base):
    run = start(tmp_path / "run", overlapping, zoo, preset="reference", tasks=TASKS[:1])
    assert score(run, overlapping, base)[0].label == "mingle (reference)"
    assert score(run, overlapping, base, label="mine")[0].label == "mine"


def test_individual_accuracy_is_that_of_the_checkpoint_itself(overlapping, base):
    tests = scored_tasks(overlapping, TASKS, base)
    told = []
    found = individual_accuracies(overlapping, base, tests, lambda *what: told.append(what[1:]))
    for task, test in tests.items():
        checkpoint = base.backbone.open(overlapping.checkpoint(task))
        model, head = base.backbone.build(checkpoint), base.backbone.head(checkpoint)
        with torch.no_grad():
            guesses = base.backbone.classify(base.backbone.features(model, test.batch), head).argmax(-1)
        assert found[task] == pytest.approx(float((guesses == test.labels).double().mean()))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_suite_without_a_head_cannot_give_individual_accuracies(overlapping, base):
    tests = scored_tasks(overlapping, TASKS[:1], base)
    (overlapping.folder / "task1" / "head.safetensors").unlink()
    with pytest.raises(ConfigError, match="the suite's checkpoint of 'task1' has no class head"):
        individual_accuracies(overlapping, base, tests)


def test_empty_run_and_unknown_tasks_are_refused(tmp_path, overlapping, zoo, base):
    empty = start(tmp_path / "empty", overlapping, zoo, tasks=())
    with pytest.raises(ConfigError, match="nothing merged yet"):
        score(empty, overlapping, base)
    run = start(tmp_path / "run", overlapping, zoo, tasks=())
    run.add(overlapping.checkpoint("task1"), name="other", seeds=overlapping.seeds("task1"))
    with pytest.raises(ConfigError, match="no test samples for other; the suite has task1, task2, task3"):
        score(run, overlapping, base)


def test_test_set_that_was_used_up_as_seeds_is_said(tmp_path, overlapping, zoo, base):
    """Every test image of a task was a seed: nothing is left to score it on."""
    run = start(tmp_path / "run", overlapping, zoo, tasks=())
    run.add(overlapping.checkpoint("task1"), name="task1", seeds=overlapping.test("task1")[0])
    with pytest.raises(ConfigError, match="'task1'"):
        score(run, overlapping, base)


def test_labels_that_the_head_does_not_have(tmp_path, suite_folder, zoo, base):
    suite = open_suite(suite_folder)
    run = start(tmp_path / "run", suite, zoo, method="average")
    file = suite_folder / "data" / "task2.safetensors"
    data = load_file(file)
    data["test_labels"][3] = 4
    save_file(data, file)
    tests = scored_tasks(open_suite(suite_folder), TASKS, base)
    message = r"test samples of 'task2': labels 0…4, but the head has 4 classes \(class0, class1, class2, …\)"
    for score_all in (lambda: evaluate_run(run, tests), lambda: individual_accuracies(suite, base, tests)):
        with pytest.raises(CheckpointError, match=message):
            score_all()
