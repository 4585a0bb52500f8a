"""Average and task arithmetic against their formulas, tensor by tensor; the two bounds."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from mingle.errors import ConfigError
from mingle.methods import METHODS, Arrival

TASKS = ("task1", "task2", "task3")


@pytest.fixture(scope="module")
def stored(zoo):
    return {name: load_file(zoo / name / "model.safetensors") for name in ("base", *TASKS)}


def merge(method, base, zoo, tasks=TASKS, without=()):
    state = method.init(base)
    for task in tasks:
        checkpoint = base.backbone.open(zoo / task)
        entries = {n: e for n, e in checkpoint.entries.items() if n not in without}
        state = method.update(state, Arrival(task, dataclasses.replace(checkpoint, entries=entries)))
    return state


def weights(method, state, task=None):
    return dict(method.model(state, task).named_parameters())


def test_average_is_the_mean_of_all_models(base, zoo, stored):
    method = METHODS.get("average").with_preset()
    state = merge(method, base, zoo)
    for t in (1, 2, 3):
        found = weights(method, state.prefix(t))
        assert found.keys() == stored["base"].keys()
        for name, tensor in found.items():
            expected = torch.stack([stored[task][name].double() for task in TASKS[:t]]).mean(0)
            torch.testing.assert_close(tensor.double(), expected, atol=1e-6, rtol=1e-6)


def test_average_of_one_task_is_its_model_bit_for_bit(base, zoo, stored):
    method = METHODS.get("average").with_preset()
    for name, tensor in weights(method, merge(method, base, zoo, TASKS[:1])).items():
        assert torch.equal(tensor, stored["task1"][name])


@pytest.mark.parametrize("scale", [None, 0.1, 1.0])
def test_task_arithmetic_adds_scaled_task_vectors(base, zoo, stored, scale):
    changes = {} if scale is None else {"scale": scale}
    method = METHODS.get("task_arithmetic").with_preset(changes=changes)
    state = merge(method, base, zoo)
    used = 0.3 if scale is None else scale
    assert method.settings(base) == {"scale": used}
    for t in (1, 2, 3):
        for name, tensor in weights(method, state.prefix(t)).items():
            origin = stored["base"][name].double()
            expected = origin + used * sum(stored[task][name].double() - origin for task in TASKS[:t])
            torch.testing.assert_close(tensor.double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("scale", [0, -1, "much"])
def test_scale_must_be_a_positive_number(scale):
    with pytest.raises(ConfigError, match="method 'task_arithmetic': option 'scale'"):
        METHODS.get("task_arithmetic").with_preset(changes={"scale": scale})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_options_are_finite(value):
    with pytest.raises(ConfigError, match=r"option 'scale'.*finite"):
        METHODS.get("task_arithmetic").with_preset(changes={"scale": value})


@pytest.mark.parametrize("name", ["average", "task_arithmetic"])
def test_tensor_that_a_checkpoint_leaves_out_counts_as_the_base(base, zoo, stored, name):
    missing = "visual_projection.weight"
    method = METHODS.get(name).with_preset()
    found = weights(method, merge(method, base, zoo, without=(missing,)))
    torch.testing.assert_close(found[missing], stored["base"][missing], atol=1e-6, rtol=0)
    other = "vision_model.post_layernorm.weight"
    assert (found[other] - stored["base"][other]).abs().max() > 1e-3


def test_pretrained_is_the_base_whatever_arrives(base, zoo, stored):
    method = METHODS.get("pretrained").with_preset()
    for name, tensor in weights(method, merge(method, base, zoo)).items():
        assert torch.equal(tensor, stored["base"][name])


def test_individual_is_every_task_its_own_model(base, zoo, stored):
    method = METHODS.get("individual").with_preset()
    state = merge(method, base, zoo)
    for task in TASKS:
        for name, tensor in weights(method, state, task).items():
            assert torch.equal(tensor, stored[task][name])
