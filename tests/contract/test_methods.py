"""The laws that every method keeps. A new method file is tested without a change here."""

import dataclasses
import json
from functools import cached_property

import pytest
import torch

from mingle.backbones import take
from mingle.backbones.clip import Clip
from mingle.errors import CheckpointError, ConfigError, SeedsError, UnknownNameError
from mingle.methods import METHODS, Arrival, Base, SeedPool

from ..conftest import tensors_of

TASKS = ("task1", "task2", "task3")
QUICK = {"steps": 3, "rank": 4}
"""Options that make a run short; a method that has one of that name gets it."""
CASES = [(name, preset) for name in METHODS.names() for preset in METHODS.get(name).presets]


def build(name, preset="default", **changes):
    method = METHODS.get(name)
    quick = {key: value for key, value in QUICK.items() if key in method.options_type.model_fields}
    return method.with_preset(preset, quick | changes)


def assert_same_bits(one, two):
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert tensor.dtype == two[name].dtype, name
        assert torch.equal(tensor, two[name]), name


class Case:
    """One method under one preset, three tasks merged, every state kept."""

    def __init__(self, zoo, name, preset):
        self.zoo, self.name, self.preset = zoo, name, preset
        self.method = build(name, preset)
        self.backbone = Clip()
        self.base = Base(self.backbone, self.backbone.open(zoo / "base"))
        generator = torch.Generator().manual_seed(5)
        images = torch.randint(0, 256, (24, 3, 16, 16), generator=generator, dtype=torch.uint8)
        self.pixels = self.backbone.prepare(images, self.base.checkpoint)
        self.labels = torch.arange(24) % 4

    def arrival(self, task, *, folder=None, **changes):
        checkpoint = self.backbone.open(self.zoo / (folder or task))
        head = self.backbone.head(self.backbone.open(self.zoo / task))
        pool = SeedPool(self.pixels, self.labels, tuple(f"id{i}" for i in range(24)))
        return dataclasses.replace(Arrival(task, checkpoint, head, pool, seed=7), **changes)

    def merge(self, *arrivals, method=None, base=None):
        method = method or self.method
        state = method.init(base or self.base)
        for arrival in arrivals:
            state = method.update(state, arrival)
        return state

    @cached_property
    def states(self):
        """The states after 0, 1, 2 and 3 tasks."""
        found = [self.method.init(self.base)]
        for task in TASKS:
            found.append(self.method.update(found[-1], self.arrival(task)))
        return found

    def models(self, state):
        """The merged model by task; one for all tasks unless the method has to be told the task."""
        if self.method.needs_task:
            return {task: self.method.model(state, task) for task in state.tasks}
        return {"all": self.method.model(state)}

    @torch.no_grad()
    def outputs(self, state, samples=slice(0, 6)):
        batch = take(self.pixels, samples)
        return {task: self.backbone.features(model, batch) for task, model in self.models(state).items()}

    @torch.no_grad()
    def base_output(self):
        return self.backbone.features(self.base.model(), take(self.pixels, slice(0, 6)))


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request, zoo):
    return Case(zoo, *request.param)


def test_a_step_is_added_and_nothing_else(case):
    for t, state in enumerate(case.states):
        assert state.tasks == TASKS[:t]
        assert all(kept is step for kept, step in zip(state.steps, case.states[-1].steps, strict=False))
    for step, task in zip(case.states[-1].steps, TASKS, strict=True):
        head = case.backbone.head(case.backbone.open(case.zoo / task))
        assert step.head.classes == head.classes
        assert_same_bits(dict(step.head.tensors), head.tensors)


def test_a_zero_task_vector_leaves_the_base_unchanged(case):
    state = case.merge(*(case.arrival(task, folder="base") for task in TASKS[:2]))
    for t in (1, 2):
        for output in case.outputs(state.prefix(t)).values():
            if case.name == "sequential":
                # The bound that merges nothing: it learns from labels, whatever the checkpoint holds.
                assert (output - case.base_output()).abs().max() > 1e-5
                continue
            torch.testing.assert_close(output, case.base_output(), atol=1e-6, rtol=0)


def test_a_task_vector_that_is_not_zero_changes_something(case):
    """Guards the law above: it would hold for a method that never does anything."""
    changed = [
        (output - case.base_output()).abs().max() > 1e-5
        for t in (1, 3)
        for output in case.outputs(case.states[t]).values()
    ]
    assert all(changed) == (case.name != "pretrained")


def test_inputs_are_not_changed(case):
    before = case.states[2]
    arrival = case.arrival("task3")
    file = case.zoo / "task3" / "model.safetensors"
    watched = {
        **{("base", name): tensor for name, tensor in case.base.tensors.items()},
        **{("state", *key): tensor for key, tensor in tensors_of(before).items()},
        **{("pool", name): tensor for name, tensor in arrival.seeds.batch.items()},
        **{("head", name): tensor for name, tensor in arrival.head.tensors.items()},
        ("pool", "labels"): arrival.seeds.labels,
    }
    copies = {name: tensor.clone() for name, tensor in watched.items()}
    stored, steps, report = file.read_bytes(), before.steps, repr([s.report for s in before.steps])
    after = case.method.update(before, arrival)
    case.outputs(after)
    assert_same_bits(watched, copies)
    assert file.read_bytes() == stored
    assert before.steps is steps
    assert repr([s.report for s in before.steps]) == report
    assert not any(tensor.requires_grad for tensor in tensors_of(after).values())


def test_order_of_names_is_irrelevant(case):
    def reversed_names(checkpoint):
        entries = dict(sorted(checkpoint.entries.items(), reverse=True))
        assert list(entries) != list(checkpoint.entries)
        return dataclasses.replace(checkpoint, entries=entries)

    base = Base(case.backbone, reversed_names(case.base.checkpoint))
    arrivals = [case.arrival(task) for task in TASKS[:2]]
    arrivals = [dataclasses.replace(a, checkpoint=reversed_names(a.checkpoint)) for a in arrivals]
    assert_same_bits(tensors_of(case.merge(*arrivals, base=base)), tensors_of(case.states[2]))


def test_the_same_seed_gives_the_same_bits_whatever_the_global_generator_is(case):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = case.merge(*(case.arrival(task) for task in TASKS), method=build(case.name, case.preset))
    case.models(again)
    assert_same_bits(tensors_of(again), tensors_of(case.states[3]))
    # And it is left as it was: what else a program draws does not depend on merging.
    assert torch.equal(torch.get_rng_state(), before)


def test_a_prefix_is_the_model_as_it_was(case):
    early = case.outputs(case.states[1])
    late = case.outputs(case.states[3].prefix(1))
    assert_same_bits(late, early)
    assert_same_bits(tensors_of(case.states[3].prefix(2)), tensors_of(case.states[2]))
    assert case.states[3].prefix(0) == case.states[0]


def test_before_the_first_task_it_is_the_base(case):
    if case.method.needs_task:
        assert case.states[0].tasks == ()
        return
    assert torch.equal(case.outputs(case.states[0])["all"], case.base_output())


def test_the_model_has_the_class_and_the_call_of_the_base(case):
    base = case.base.model()
    for model in case.models(case.states[3]).values():
        assert type(model) is type(base)
        output = model(pixel_values=case.pixels["pixel_values"][:2])
        assert output.image_embeds.shape == (2, 24)
        assert type(output) is type(base(case.pixels["pixel_values"][:2]))


def test_the_model_is_frozen_and_finite(case):
    for state in case.states[1:]:
        for model in case.models(state).values():
            assert not model.training
            assert not any(p.requires_grad for p in model.parameters())
        for output in case.outputs(state).values():
            assert torch.isfinite(output).all()
    assert all(torch.isfinite(tensor).all() for tensor in tensors_of(case.states[3]).values())


def test_a_sample_is_classified_the_same_alone_and_in_any_batch(case):
    if case.method.settings(case.base).get("gate_reduction") == "batch":
        # Must be said openly, and must be true.
        with torch.no_grad():
            together = case.outputs(case.states[3])["all"]
            alone = case.outputs(case.states[3], slice(0, 1))["all"]
        assert (together[0] - alone[0]).abs().max() > 1e-5
        return
    for task, together in case.outputs(case.states[3], slice(0, 24)).items():
        shuffled = case.outputs(case.states[3], torch.tensor([5, 3, 3, 11]))[task]
        torch.testing.assert_close(shuffled, together[[5, 3, 3, 11]], atol=1e-5, rtol=0)
        for i in (0, 5):
            alone = case.outputs(case.states[3], slice(i, i + 1))[task]
            torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=0)


def test_the_task_must_be_named_exactly_where_there_is_no_one_model(case):
    state = case.states[2]
    if case.method.needs_task:
        with pytest.raises(ConfigError, match="one model per task"):
            case.method.model(state)
        with pytest.raises(UnknownNameError, match="unknown task 'tsk1'; did you mean task1"):
            case.method.model(state, "tsk1")
        return
    named = case.backbone.features(case.method.model(state, "task1"), take(case.pixels, slice(0, 6)))
    assert torch.equal(named, case.outputs(state)["all"])


def test_seeds_and_head_are_asked_for_only_where_they_are_needed(case):
    without_seeds = case.arrival("task1", seeds=None)
    without_head = case.arrival("task1", head=None)
    if case.method.needs_seeds:
        with pytest.raises(SeedsError, match=r"'task1'.*seed samples"):
            case.merge(without_seeds)
        options = case.method.options.model_dump()
        if options.get("gates") == "analytic" and options["seeds_in_all"]:
            # Nobody is asked, and no class counted.
            assert case.merge(without_head).steps[0].head is None
            return
        with pytest.raises(CheckpointError, match="no class head"):
            case.merge(without_head)
        return
    expected = tensors_of(case.states[1])
    assert_same_bits(tensors_of(case.merge(without_seeds)), expected)
    assert_same_bits(tensors_of(case.merge(without_head)), expected)
    assert case.merge(without_head).steps[0].head is None


def test_a_checkpoint_may_leave_out_what_the_backbone_calls_optional(case):
    whole = case.arrival("task1")
    for name in case.backbone.optional:
        entries = {n: e for n, e in whole.checkpoint.entries.items() if n != name}
        arrival = dataclasses.replace(
            whole, checkpoint=dataclasses.replace(whole.checkpoint, entries=entries)
        )
        state = case.merge(arrival)
        for model in case.models(state).values():
            assert torch.equal(model.get_parameter(name), case.base.tensors[name])


def test_settings_name_every_option_in_plain_values(case):
    settings = case.method.settings(case.base)
    assert settings.keys() == case.method.options_type.model_fields.keys()
    assert json.loads(json.dumps(settings, allow_nan=False)) == settings
    chosen = case.method.options.model_dump()
    # Settings fill in what was left open and change nothing that was chosen.
    assert {k: v for k, v in settings.items() if chosen[k] is not None} == {
        k: v for k, v in chosen.items() if v is not None
    }
    assert case.method.options_type.parse(settings, "again").model_dump() == settings


def test_reports_are_plain_values(case):
    for step in case.states[3].steps:
        assert json.loads(json.dumps(step.report, allow_nan=False)) == step.report


def test_progress_counts_up_to_the_end(case):
    told = []
    after = case.method.update(case.states[1], case.arrival("task2"), lambda *what: told.append(what))
    tensors_of(after)  # a method may do its work only when a tensor is asked for
    previous = 0
    for what, done, total in told:
        assert what
        assert done == previous + 1 <= total
        previous = done if done < total else 0
    # Every stretch of work was counted to its end; only a method without any work tells nothing.
    assert previous == 0
    assert bool(told) == (case.name not in ("pretrained", "individual"))


def test_names_are_those_of_the_registry(case):
    assert case.method.name() == case.name
    assert type(case.method).__doc__
    assert "default" in case.method.presets


def test_wrong_preset_gets_the_nearest_right_one(case):
    wrong = case.preset[:-1]
    with pytest.raises(UnknownNameError, match=f"unknown preset '{wrong}'; did you mean {case.preset}"):
        METHODS.get(case.name).with_preset(wrong)


def test_wrong_option_gets_the_nearest_right_one(case):
    fields = case.method.options_type.model_fields
    for field in fields:
        with pytest.raises(ConfigError) as error:
            METHODS.get(case.name).with_preset(case.preset, {f"{field}x": 1})
        assert str(error.value).startswith(
            f"method {case.name!r}: unknown option '{field}x'; did you mean '{field}'"
        )
    with pytest.raises(ConfigError, match=r"unknown option 'zzzz'; known: \w+"):
        METHODS.get(case.name).with_preset(case.preset, {"zzzz": 1})


def test_wrong_method_gets_the_nearest_right_one():
    with pytest.raises(UnknownNameError, match="unknown method 'averge'; did you mean average"):
        METHODS.get("averge")
