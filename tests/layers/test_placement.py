"""Finished models in half precision and over several devices."""

import copy
import gc

import pytest
import torch

from mingle.errors import ConfigError
from mingle.layers import Gate, Placement, mixtures
from mingle.state import MergeRun

from ..backbones.families import FAMILIES


@pytest.fixture(scope="module", params=["default", "learned"])
def run(request, zoo, tmp_path_factory):
    images = torch.randint(0, 256, (40, 3, 16, 16), generator=torch.Generator().manual_seed(5))
    folder, options = tmp_path_factory.mktemp("placed") / "run", {"steps": 5, "lr": 0.01}
    run = MergeRun.create(folder, zoo / "base", preset=request.param, options=options)
    for number, task in enumerate(("task1", "task2")):
        run.add(zoo / task, name=task, seeds=images[20 * number :][:20].to(torch.uint8))
    return run


def deciding(model):
    """The gates with weights of their own."""
    return [module for module in model.modules() if isinstance(module, Gate) and hasattr(module, "weight")]


@pytest.fixture
def batch(run, images):
    return run.backbone.prepare(images[:6], run.base.checkpoint)


def features(run, model, batch):
    with torch.no_grad():
        return run.backbone.features(model, batch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_and_gates_stay_wide(run, batch, dtype):
    expected = features(run, run.model(), batch)
    model = run.model(placement=Placement(dtype=dtype))
    found = features(run, model, batch)
    assert found.dtype == torch.float32
    assert 0 < (found - expected).norm() / expected.norm() < 0.02
    for _, layer in mixtures(model):
        assert layer.A.dtype == layer.B.dtype == layer.linear.weight.dtype == dtype
    assert {gate.weight.dtype for gate in deciding(model)} == {torch.float32}
    names = {name for name, p in model.named_parameters() if p.dtype != dtype}
    assert not names, "only gates stay in float32, and theirs are buffers"


@pytest.mark.parametrize("method", ["average", "individual", "nearest_subspace", "lora_wemoe"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_tensor_of_every_kind_of_model_is_the_wide_one_rounded(zoo, tmp_path, method, dtype, images):
    run = MergeRun.create(tmp_path / "run", zoo / "base", method=method)
    for task in ("task1", "task2"):
        run.add(zoo / task, seeds=images)
    task = "task2" if run.method.needs_task else None
    exact = run.model(task=task).state_dict()
    found = run.model(task=task, placement=Placement(dtype=dtype)).state_dict()
    assert found.keys() == exact.keys()
    for name, tensor in found.items():
        assert tensor.dtype == dtype or "gate" in name or "router" in name or not tensor.is_floating_point()
        assert torch.equal(tensor, exact[name].to(tensor.dtype)), name


@pytest.mark.parametrize("run", ["learned"], indirect=True)
def test_gates_of_half_inputs_are_those_of_the_exact_mean(run, batch):
    model = run.model(placement=Placement(dtype=torch.bfloat16))
    seen = {}
    name, layer = next(mixtures(model))
    handle = layer.register_forward_pre_hook(lambda _, args: seen.setdefault(name, args[0]))
    gates = []
    layer.gate.register_forward_hook(lambda *call: gates.append(call[2]))
    features(run, model, batch)
    handle.remove()
    assert seen[name].dtype == torch.bfloat16
    exact = seen[name].double().mean(1) @ layer.gate.weight.double().mT + layer.gate.bias.double()
    torch.testing.assert_close(gates[0].double(), exact, atol=1e-6, rtol=1e-5)


def test_the_run_and_its_base_are_not_touched(run, batch):
    before = features(run, run.model(), batch)
    run.model(placement=Placement(dtype=torch.bfloat16))
    assert torch.equal(features(run, run.model(), batch), before)
    assert {t.dtype for t in run.base.tensors.values()} == {torch.float32}


def test_parts_on_disk_compute_the_same(run, batch, images, tmp_path):
    expected = features(run, run.model(), batch)
    encoder = "vision_model.encoder.layers"
    parts = ["vision_model.embeddings", "vision_model.pre_layrnorm", "vision_model.post_layernorm"]
    device_map = dict.fromkeys([*parts, "visual_projection", f"{encoder}.0"], "cpu") | {
        f"{encoder}.1": "disk"
    }
    model = run.model(placement=Placement(device_map=device_map, offload_folder=tmp_path))
    away = dict(model.named_parameters())[f"{encoder}.1.mlp.fc1.linear.weight"]
    assert away.is_meta
    assert torch.equal(features(run, model, batch), expected)
    found, _ = run.predict(images[:6], "task1", model=model)
    assert torch.equal(found, run.predict(images[:6], "task1")[0])


def test_automatic_maps_respect_the_memory_that_is_given(run, batch, tmp_path):
    expected = features(run, run.model(), batch)
    whole = sum(tensor.nbytes for tensor in run.model().state_dict().values())
    placement = Placement(device_map="auto", max_memory={"cpu": whole * 2 // 3}, offload_folder=tmp_path)
    model = run.model(placement=placement)
    assert {"cpu", "disk"} == set(model.hf_device_map.values())
    assert torch.equal(features(run, model, batch), expected)


def test_strongest_experts_are_asked_for_and_all_is_the_default(run, batch):
    expected = features(run, run.model(), batch)
    every = features(run, run.model(placement=Placement(strongest=len(run.tasks))), batch)
    assert torch.equal(every, expected)
    one = run.model(placement=Placement(strongest=1))
    assert 0 < (features(run, one, batch) - expected).norm() / expected.norm() < 0.5
    with pytest.raises(ConfigError, match="expected at least 1 expert, found 0"):
        Placement(strongest=0)


def test_a_threshold_is_asked_for_and_goes_with_the_strongest(run, batch):
    expected = features(run, run.model(), batch)
    assert torch.equal(features(run, run.model(placement=Placement(gate_threshold=0.0)), batch), expected)
    model = run.model(placement=Placement(strongest=1, gate_threshold=1e-3))
    limits = {(layer.selection.strongest, layer.selection.threshold) for _, layer in mixtures(model)}
    assert limits == {(1, 1e-3)}
    assert not torch.equal(features(run, model, batch), expected)
    none = run.model(placement=Placement(gate_threshold=1e6))
    base = features(run, run.base.model(), batch)
    torch.testing.assert_close(features(run, none, batch), base, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("threshold", [-0.1, float("nan"), float("inf")])
def test_a_threshold_that_is_none_is_refused(threshold):
    with pytest.raises(ConfigError, match=f"gate_threshold: expected a number from 0 on, found {threshold}"):
        Placement(gate_threshold=threshold)


def test_what_cannot_be_is_refused_in_one_line(run, batch, tmp_path):
    with pytest.raises(ConfigError, match=r"expected bfloat16, float16 or float32, found torch\.int8"):
        run.model(placement=Placement(dtype=torch.int8))
    twice = Placement(device_map="disk", offload_folder=tmp_path)
    assert not torch.equal(*(features(run, run.model(placement=twice, steps=t), batch) for t in (1, 2)))
    with pytest.raises(ConfigError, match="pass offload_folder"):
        run.model(placement=Placement(device_map="disk"))
    with pytest.raises(ConfigError, match="device_map: not possible for this model"):
        run.model(placement=Placement(device_map={"vision_model.embeddings": "cpu"}))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "swin"])
def test_what_a_family_computes_itself_and_ties_stays_so(family, tmp_path):
    """Rotations in half precision are wrong by whole turns at long prompts; a tied weight counts once."""
    made = FAMILIES[family]
    made.write(tmp_path)
    run = MergeRun.create(tmp_path / "run", tmp_path / "base", method="average", backbone=made.backbone)
    run.add(tmp_path / "task1")
    model = run.model(placement=Placement(dtype=torch.bfloat16))
    buffers = {name: buffer.dtype for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    assert set(buffers.values()) <= {torch.float32}
    assert any("inv_freq" in name for name in buffers) == (family == "llama")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert len(list(model.parameters())) == len(list(run.model().parameters()))
    found, _ = run.predict(made.samples(1, 4), "task1", model=model)
    assert found.dtype == torch.float32
    assert found.shape == run.predict(made.samples(1, 4), "task1")[0].shape


def test_offloaded_parts_are_removed_with_their_model(run, tmp_path):
    model = run.model(placement=Placement(device_map="disk", offload_folder=tmp_path / "new"))
    assert list((tmp_path / "new").glob("mingle-*/*.dat"))
    del model
    gc.collect()
    assert not list((tmp_path / "new").iterdir())


def test_gates_of_a_copy_decide_as_before(run, batch):
    model = run.model(placement=Placement(dtype=torch.bfloat16))
    assert torch.equal(features(run, copy.deepcopy(model), batch), features(run, model, batch))
    assert any(isinstance(module, Gate) for module in model.modules())
