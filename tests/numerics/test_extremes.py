"""Task vectors that no training should give, for every method: finite results, or one clear refusal."""

import dataclasses

import pytest
import torch

from mingle.errors import CheckpointError, DivergedError, MingleError, MismatchError
from mingle.methods import METHODS
from mingle.weights import check_against

from ..conftest import tensors_of
from .conftest import FROZEN

DATA_FREE = [name for name in METHODS.names() if not METHODS.get(name).with_preset().needs_seeds]
CASES = [(name, "default") for name in DATA_FREE if name not in ("pretrained", "individual")]
CASES += [("mingle", preset) for preset in ("default", "learned", "paper", "reference", "static")]


def low_rank(delta):
    """The first column everywhere: rank 1."""
    return delta[:, :1].expand_as(delta) if delta.dim() == 2 else delta


def one_entry(delta):
    return delta * (torch.arange(delta.numel()).reshape(delta.shape) == 0)


def frozen(deltas):
    """As fine-tuning with a frozen layer leaves it."""
    return {n: torch.zeros_like(d) if "mlp" in n else d for n, d in deltas.items()}


def tiny(deltas):
    """In the last bit of most weights; subnormal where the base is zero."""
    return {n: 1e-40 * d.sign() if n == FROZEN else 1e-9 * d for n, d in deltas.items()}


KINDS = {
    "rank-deficient": lambda deltas: {n: low_rank(d) for n, d in deltas.items()},
    "zero": lambda deltas: {n: torch.zeros_like(d) for n, d in deltas.items()},
    "a frozen layer": frozen,
    "tiny": tiny,
    "one entry": lambda deltas: {n: one_entry(d) for n, d in deltas.items()},
    "huge": lambda deltas: {n: 1e6 * d for n, d in deltas.items()},
    "near the largest float": lambda deltas: {n: 1e38 * d.sign() for n, d in deltas.items()},
}
ABSURD = ("huge", "near the largest float")


@pytest.fixture(scope="session")
def written(small):
    """Two checkpoints of every kind, and two ordinary ones."""
    for seed in (1, 2):
        small.write(f"plain{seed}", small.noise(seed))
        for kind, change in KINDS.items():
            small.write(f"{kind}{seed}", change(small.noise(seed)))
    return small


def finite_or_refused(small, method, names):
    """Whether the merge, or prediction with what it gives, was refused; all else is finite."""
    try:
        state = small.merge(method, names)
        found = tensors_of(state)
        features, head = small.outputs(method, state), state.steps[-1].head
        decided = small.backbone.decide(features, head)
        chances = small.backbone.probabilities(features, head)
    except MingleError:
        return True
    assert all(torch.isfinite(tensor).all() for tensor in (*found.values(), features, chances))
    assert decided.tolist() == chances.argmax(-1).tolist()
    return False


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "preset"), CASES)
def test_whatever_arrives_results_are_finite_or_refused(written, name, preset, kind):
    method = written.method(name, preset)
    refused = finite_or_refused(written, method, [f"{kind}1", "plain1", f"{kind}2"])
    # What is only unusual has to work.
    assert kind in ABSURD or not refused


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_the_same_task_twice(written, name, preset):
    assert not finite_or_refused(written, written.method(name, preset), ["plain1"] * 3)


@pytest.mark.parametrize("preset", ["learned", "paper", "reference"])
def test_more_protected_directions_than_the_layer_has_inputs(written, preset):
    """d_in = 16, and 8 directions for each of four tasks."""
    method = written.method("mingle", preset, directions=8)
    state = written.merge(method, ["plain1", "plain2", "rank-deficient1", "rank-deficient2"])
    assert torch.isfinite(written.outputs(method, state)).all()
    groups = {name for step in state.steps for name in step.tensors["subspace"]}
    for group in groups:
        basis = torch.cat([step.tensors["subspace"][group] for step in state.steps], dim=1)
        assert basis.shape[1] <= len(basis)
        torch.testing.assert_close(basis.mT @ basis, torch.eye(basis.shape[1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["opcm", "tsv_m", "iso_c", "wudi", "dop", "nufilt"])
def test_a_frozen_layer_stays_the_bases(written, name):
    method = written.method(name)
    state = written.merge(method, ["a frozen layer1", "a frozen layer2"])
    task = state.tasks[-1] if method.needs_task else None
    model = method.model(state, task)
    merged = dict(model.named_parameters()) | dict(model.named_buffers())
    torch.testing.assert_close(merged[FROZEN], written.tensors[FROZEN], atol=1e-7, rtol=0)


@pytest.mark.parametrize("preset", ["default", "learned"])
def test_a_frozen_layer_has_no_expert_to_speak_of(written, preset):
    """In its own place in the model, where a router has computed its gates."""
    method = written.method("mingle", preset)
    model = method.model(written.merge(method, ["a frozen layer1", "a frozen layer2"]))
    outputs = []
    model.get_submodule(FROZEN.removesuffix(".weight")).register_forward_hook(
        lambda layer, args, found: outputs.append(found)
    )
    with torch.no_grad():
        model(**written.batch)
    [found] = outputs
    bias = written.base.tensors[FROZEN.replace("weight", "bias")]
    torch.testing.assert_close(found, bias.expand(8, 5, 20))


def test_predictions_of_a_model_that_overflows_are_refused(written):
    """The weights are finite, what they compute is not; argmax of NaN would be a class all the same."""
    method = written.method("task_arithmetic")
    state = written.merge(method, ["near the largest float1"])
    features = written.outputs(method, state)
    assert not torch.isfinite(features).all()
    head = state.steps[-1].head
    for say in (written.backbone.decide, written.backbone.probabilities):
        with pytest.raises(DivergedError, match="NaN or Inf"):
            say(features, head)


def test_checkpoints_in_half_precision_near_its_end(small):
    """float16 ends at 65504: that value is merged exactly, one that overflowed on the way is refused."""
    deltas = {n: torch.zeros_like(t) for n, t in small.tensors.items()}
    deltas[FROZEN][0, 0] = 65504.0
    whole = small.backbone.open(small.root / small.write("half", deltas, torch.float16))
    assert whole.entries[FROZEN].dtype == "F16"
    method = small.method("average")
    assert float(small.merge(method, ["half"]).steps[0].tensors["weights"][FROZEN][0, 0]) == 65504.0
    deltas[FROZEN][0, 0] = 70000.0
    overflowed = small.backbone.open(small.root / small.write("over", deltas, torch.float16))
    with pytest.raises(MismatchError, match=rf"{FROZEN}: 1 non-finite values"):
        check_against(small.base.checkpoint, overflowed)


def test_a_model_that_half_precision_cannot_hold_is_refused(small):
    deltas = {n: torch.zeros_like(t) for n, t in small.tensors.items()}
    deltas[FROZEN][0, 0] = 70000.0
    method = small.method("average")
    small.write("large", deltas)
    state = small.merge(method, ["large"])
    for dtype, fits in ((torch.bfloat16, True), (torch.float16, False)):
        narrow = dataclasses.replace(state, base=dataclasses.replace(state.base, dtype=dtype))
        if fits:
            assert torch.isfinite(method.model(narrow).get_parameter(FROZEN)).all()
        else:
            with pytest.raises(CheckpointError, match=rf"{FROZEN}: values up to 7e\+04, but float16 ends at"):
                method.model(narrow)
