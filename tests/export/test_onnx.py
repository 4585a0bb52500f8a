"""The merged model as a graph: parity with onnxruntime."""

import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from mingle.errors import ConfigError, ExportError
from mingle.export import export_run, from_pretrained
from mingle.layers import Placement
from tests.export.conftest import TASKS, merge


@pytest.fixture(scope="module")
def folder(gated, tmp_path_factory):
    out = tmp_path_factory.mktemp("onnx") / "out"
    export_run(gated, "onnx", out)
    return out


@pytest.fixture(scope="module")
def session(folder):
    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("size", [1, 3])
def test_the_graph_computes_what_the_model_does_for_any_batch(gated, session, pixels, size):
    batch = gated.backbone.prepare(pixels[:size], gated.base.checkpoint)
    found = session.run(None, {"pixel_values": batch["pixel_values"].numpy()})
    assert [output.name for output in session.get_outputs()] == ["features", *TASKS]
    with torch.no_grad():
        features = gated.backbone.features(gated.model(), batch)
        logits = [gated.backbone.classify(features, step.head) for step in gated.state.steps]
        without = gated.backbone.features(gated.base.model(), batch)
    assert (features - without).abs().max() > 0.01
    for one, two in zip(found, [features, *logits], strict=True):
        np.testing.assert_allclose(one, two.numpy(), rtol=1e-4, atol=1e-4)


def assert_graph_and_folder(run, pixels, tmp_path):
    """The graph computes what the model does, and the folder its bits."""
    batch = run.backbone.prepare(pixels[:5], run.base.checkpoint)
    with torch.no_grad():
        expected = run.model()(**batch).image_embeds
    export_run(run, "onnx", tmp_path / "onnx")
    graph = onnxruntime.InferenceSession(tmp_path / "onnx/model.onnx", providers=["CPUExecutionProvider"])
    found = graph.run(["features"], {"pixel_values": batch["pixel_values"].numpy()})[0]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)
    export_run(run, "hf", tmp_path / "hf", options={"with_base": True})
    with torch.no_grad():
        assert torch.equal(from_pretrained(tmp_path / "hf").model(**batch).image_embeds, expected)


@pytest.mark.parametrize("reads", ["trunk", "stem", "block", "layer"])
def test_gates_in_closed_form_are_in_the_graph_and_in_the_folder(narrow, pixels, tmp_path, reads):
    options = {"gates": "analytic", "router_reads": reads, "rank": 28}
    run = merge(tmp_path / "run", narrow, pixels, "mingle", tasks=TASKS[:2], **options)
    assert_graph_and_folder(run, pixels, tmp_path)


def test_experts_that_tasks_share_are_in_the_graph_and_in_the_folder(narrow, pixels, tmp_path):
    run = merge(tmp_path / "run", narrow, pixels, "made_it", merge_deviations=0.0, rank=8)
    assert 12 < run.state.steps[-1].report["merging"]["experts"] < 36
    assert_graph_and_folder(run, pixels, tmp_path)


@pytest.mark.parametrize(
    ("gates", "changes"),
    [
        ("analytic", {"strongest": 1, "router_temperature": 1.0}),
        ("adapted", {"strongest": 2, "gate_threshold": 0.3}),
    ],
)
def test_the_graph_uses_the_experts_that_the_run_keeps(narrow, pixels, tmp_path, gates, changes):
    options = {"gates": gates, "steps": 2, "lr": 0.05, "gate_init": "normal", "rank": 28}
    run = merge(tmp_path / "run", narrow, pixels, "mingle", tasks=(), **options, **changes)
    # Of the same seeds all tasks would have the same gates, and none the largest.
    for number, task in enumerate(TASKS):
        run.add(narrow / task, seeds=pixels[number::3])
    batch = run.backbone.prepare(pixels[:5], run.base.checkpoint)
    with torch.no_grad():
        expected = run.model()(**batch).image_embeds
        every = run.model(placement=Placement(strongest=3, gate_threshold=0.0))(**batch).image_embeds
    assert (every - expected).abs().max() > 1e-3
    export_run(run, "onnx", tmp_path / "onnx")
    graph = onnxruntime.InferenceSession(tmp_path / "onnx/model.onnx", providers=["CPUExecutionProvider"])
    found = graph.run(["features"], {"pixel_values": batch["pixel_values"].numpy()})[0]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)


def test_a_sample_does_not_depend_on_the_rest_of_its_batch(gated, session, pixels):
    batch = gated.backbone.prepare(pixels, gated.base.checkpoint)["pixel_values"].numpy()
    together = session.run(["features"], {"pixel_values": batch[:3]})[0]
    other = np.concatenate([batch[:1], batch[5:9]])
    np.testing.assert_allclose(
        session.run(["features"], {"pixel_values": other})[0][0], together[0], atol=1e-5
    )


def test_the_file_says_nothing_of_the_machine(folder):
    onnx.checker.check_model(folder / "model.onnx")
    data = (folder / "model.onnx").read_bytes()
    assert b"site-packages" not in data
    assert b".py" not in data


def test_logits_may_be_left_out(averaged, tmp_path):
    content = export_run(averaged, "onnx", tmp_path / "out", options={"logits": False})
    assert content["outputs"] == ["features"]
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    assert [output.name for output in graph.output] == ["features"]


def test_a_model_that_was_traced_still_computes_what_it_did(gated, pixels, folder):
    """What the pooled input remembers is of this pass, not of the trace."""
    batch = gated.backbone.prepare(pixels[:2], gated.base.checkpoint)
    model = gated.model()
    before = model(**batch).image_embeds
    torch.export.export(model, (), batch)
    assert torch.equal(model(**batch).image_embeds, before)


def test_what_has_no_graph_is_refused_by_name(answering, averaged, tmp_path, monkeypatch):
    with pytest.raises(ExportError, match="a model of backbone 'seq2seq' writes text"):
        export_run(answering, "onnx", tmp_path / "out")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"needs onnxscript: pip install 'mingle-merge\[onnx\]'"):
        export_run(averaged, "onnx", tmp_path / "out")
