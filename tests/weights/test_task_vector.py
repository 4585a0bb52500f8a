"""The difference to the base, and the check that lists everything that stands in its way."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mingle.backbones.clip import Clip
from mingle.errors import CheckpointError, MismatchError
from mingle.weights import Entry, check_against, task_vector

BACKBONE = Clip()
PROJECTION = "visual_projection.weight"
LAYER = "vision_model.encoder.layers.0"


@pytest.fixture
def arrived(zoo, tmp_path):
    """A checkpoint of the base with some tensors changed, added or (None) left out."""

    def write(**changes):
        tensors = load_file(zoo / "task1" / "model.safetensors")
        for name, tensor in changes.items():
            if tensor is None:
                del tensors[name]
            else:
                tensors[name] = tensor
        shutil.copy(zoo / "task1" / "config.json", tmp_path)
        save_file(tensors, tmp_path / "model.safetensors")
        return BACKBONE.open(tmp_path)

    return write


@pytest.fixture
def origin(base):
    return base.checkpoint


def problems(origin, checkpoint, optional=()):
    with pytest.raises(MismatchError) as error:
        check_against(origin, checkpoint, optional)
    assert isinstance(error.value, CheckpointError)
    text = str(error.value)
    assert text.startswith(f"{checkpoint.source}: {len(error.value.problems)} mismatch")
    assert all(f"  - {problem}" in text.splitlines() for problem in error.value.problems)
    return error.value.problems


def test_every_mismatch_is_listed_at_once(arrived, origin):
    broken = torch.zeros(48)
    broken[:3] = torch.tensor([float("nan"), float("inf"), float("-inf")])
    checkpoint = arrived(
        **{
            f"{LAYER}.mlp.fc1.bias": broken,
            f"{LAYER}.mlp.fc1.weight": torch.zeros(32, 48),
            f"{LAYER}.mlp.fc2.bias": torch.zeros(32, dtype=torch.int32),
            f"{LAYER}.mlp.fc2.weight": None,
            "vision_model.embeddings.class_embedding": torch.zeros(()),
            "classifier.weight": torch.zeros(4, 24),
        }
    )
    assert sorted(problems(origin, checkpoint)) == sorted(
        [
            f"{LAYER}.mlp.fc2.weight: missing (base has 32×48)",
            "classifier.weight: unexpected (the base has no such tensor; found 4×24)",
            f"{LAYER}.mlp.fc1.bias: 3 non-finite values (NaN or Inf)",
            f"{LAYER}.mlp.fc1.weight: shape 32×48, base has 48×32",
            f"{LAYER}.mlp.fc2.bias: dtype I32, expected one of F64, F32, F16, BF16",
            "vision_model.embeddings.class_embedding: shape scalar, base has 32",
        ]
    )


def test_one_tensor_can_have_several_problems(arrived, origin):
    checkpoint = arrived(**{PROJECTION: torch.full((24, 31), float("nan"))})
    assert problems(origin, checkpoint) == [
        f"{PROJECTION}: shape 24×31, base has 24×32",
        f"{PROJECTION}: {24 * 31} non-finite values (NaN or Inf)",
    ]


def test_wrong_base_of_the_same_family_is_noticed(arrived, origin, zoo):
    """Swapping the roles turns every missing tensor into an unexpected one."""
    checkpoint = arrived(**{PROJECTION: None})
    assert problems(origin, checkpoint) == [f"{PROJECTION}: missing (base has 24×32)"]
    assert problems(checkpoint, origin) == [
        f"{PROJECTION}: unexpected (the base has no such tensor; found 24×32)"
    ]


def test_only_optional_tensors_may_be_missing(arrived, origin):
    checkpoint = arrived(**{PROJECTION: None, f"{LAYER}.mlp.fc1.bias": None})
    assert problems(origin, checkpoint, BACKBONE.optional) == [f"{LAYER}.mlp.fc1.bias: missing (base has 48)"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_floating_precision_is_welcome(arrived, origin, zoo, dtype):
    stored = load_file(zoo / "task1" / "model.safetensors")
    checkpoint = arrived(**{name: tensor.to(dtype) for name, tensor in stored.items()})
    assert check_against(origin, checkpoint) is None
    delta = task_vector(origin, checkpoint, PROJECTION, torch.float64)
    expected = stored[PROJECTION].to(dtype).double() - origin.tensor(PROJECTION).double()
    assert torch.equal(delta, expected)
    # The same call does refuse what is out of range in that precision.
    spoiled = stored[PROJECTION].to(dtype)
    spoiled[0, 0] = float("inf")
    assert problems(origin, arrived(**{PROJECTION: spoiled})) == [
        f"{PROJECTION}: 1 non-finite values (NaN or Inf)"
    ]


def test_the_check_leaves_the_fingerprint_behind(arrived, origin, monkeypatch):
    checkpoint, fresh = arrived(), BACKBONE.open(arrived().folder).fingerprint
    check_against(origin, checkpoint)
    monkeypatch.setattr(Entry, "read", None)
    assert checkpoint.fingerprint == fresh
    # Where it did not read everything it knows none.
    monkeypatch.undo()
    changed = arrived(extra=torch.zeros(2))
    problems(origin, changed)
    assert "fingerprint" not in vars(changed)
    assert changed.fingerprint == BACKBONE.open(changed.folder).fingerprint != fresh


@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 0)])
def test_values_that_are_not_finite_are_counted_in_every_shape(arrived, origin, shape):
    for value in (0.0, float("nan"), float("inf"), float("-inf")):
        tensor = torch.full(shape, value)
        found = problems(origin, arrived(**{PROJECTION: tensor}))
        bad = 0 if value == 0 else tensor.numel()
        assert [f"{PROJECTION}: {bad} non-finite values (NaN or Inf)"] * bool(bad) == found[1:]


def test_task_vector_is_the_difference(zoo, origin):
    checkpoint = BACKBONE.open(zoo / "task1")
    ours, theirs = (
        load_file(zoo / "base" / "model.safetensors"),
        load_file(zoo / "task1" / "model.safetensors"),
    )
    for name in origin.names():
        delta = task_vector(origin, checkpoint, name, torch.float32)
        assert torch.equal(delta, theirs[name] - ours[name])
        assert delta.any()


def test_task_vector_of_what_a_checkpoint_leaves_out_is_zero(arrived, origin):
    delta = task_vector(origin, arrived(**{PROJECTION: None}), PROJECTION, torch.float64)
    assert torch.equal(delta, torch.zeros(24, 32, dtype=torch.float64))


def test_damaged_data_is_not_a_mismatch_but_an_error(arrived, origin, tmp_path):
    checkpoint = arrived()
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="cannot read tensor"):
        check_against(origin, checkpoint)
