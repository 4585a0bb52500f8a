"""Families whose tasks keep a head of their own, in the forms of other tools."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

import mingle
from mingle.errors import ExportError, UnknownNameError
from mingle.export import export_run
from tests.backbones.families import FAMILIES, IMAGE, TASKS, TEXT, write_classifier, write_text_classifier


def merge(root, name, method, **options):
    family = FAMILIES[name]
    if not (root / "base").exists():
        family.write(root)
    run = mingle.MergeRun.create(
        root / "run", root / "base", method=method, backbone=family.backbone, options=options
    )
    for task in TASKS:
        run.add(root / task, seeds=family.samples(1, 8))
    return run


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_backbone_and_a_tasks_head_are_a_plain_classifier(tmp_path, name):
    FAMILIES[name].write(tmp_path)
    config = json.loads((tmp_path / "task2" / "config.json").read_text())
    config["id2label"] = {"0": "4", "1": "5", "2": "6"}  # the names of task1 are others
    (tmp_path / "task2" / "config.json").write_text(json.dumps(config | {"label2id": None}))
    run = merge(tmp_path, name, "average")
    samples = FAMILIES[name].samples(2, 5)
    batch = run.backbone.prepare(samples, run.base.checkpoint)
    for task in TASKS:
        content = export_run(run, "merged", tmp_path / task / "out", options={"task": task})
        loaded = (
            getattr(transformers, content["architecture"]).from_pretrained(tmp_path / task / "out").eval()
        )
        probabilities, classes = run.predict(samples, task)
        with torch.no_grad():
            assert torch.equal(loaded(**batch).logits.softmax(-1), probabilities)
        assert tuple(loaded.config.id2label.values()) == classes
    opened = run.backbone.open(tmp_path / "task1" / "out")
    beside = run.backbone.head(opened, tmp_path / "task1" / "out" / "heads" / "task2.safetensors")
    assert beside.classes == run.state.step("task2").head.classes == ("4", "5", "6")
    stored = run.state.step("task2").head.tensors
    assert all(torch.equal(beside.tensors[key], tensor) for key, tensor in stored.items())


def test_without_a_task_the_heads_lie_beside(averaged, tmp_path):
    run = merge(tmp_path, "vit", "average")
    content = export_run(run, "merged", tmp_path / "out")
    assert content["head"] is None
    assert content["architecture"] == "ViTModel"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["ViTModel"]
    assert "bare ViTModel; the heads are in heads/" in content["notes"][0]
    loaded = transformers.ViTModel.from_pretrained(tmp_path / "out", add_pooling_layer=False).eval()
    batch = run.backbone.prepare(FAMILIES["vit"].samples(2, 5), run.base.checkpoint)
    with torch.no_grad():
        states = loaded(**batch).last_hidden_state
        assert torch.equal(states[:, 0], run.backbone.features(run.model(), batch))
    assert "notes" not in export_run(run, "merged", tmp_path / "whole", options={"task": "task1"})
    assert run.backbone.head_tensors(run.backbone.open(tmp_path / "out"), run.base.checkpoint) == {}
    with pytest.raises(UnknownNameError, match=r"unknown task of .*run 'task9'"):
        export_run(run, "merged", tmp_path / "other", options={"task": "task9"})
    with pytest.raises(ExportError, match="no head that is part of a model of backbone 'clip'"):
        export_run(averaged, "merged", tmp_path / "other", options={"task": "task1"})


def test_a_graph_of_pictures_has_the_size_that_the_base_prepares(tmp_path):
    values = IMAGE | {
        "num_hidden_layers": 1,
        "image_size": 32,
    }  # of the pretraining; the positions are resized
    write_classifier(tmp_path, "AutoModelForImageClassification", "dinov2", values)
    size, half = {"height": 16, "width": 16}, [0.5, 0.5, 0.5]
    processor = {"size": size, "image_mean": half, "image_std": half, "do_center_crop": False}
    (tmp_path / "base" / "preprocessor_config.json").write_text(
        json.dumps(processor | {"image_processor_type": "ViTImageProcessor"})
    )
    run = merge(tmp_path, "dinov2", "average")
    export_run(run, "onnx", tmp_path / "out")
    session = onnxruntime.InferenceSession(
        tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    for number in (1, 3):
        batch = run.backbone.prepare(FAMILIES["dinov2"].samples(3, number), run.base.checkpoint)
        assert batch["pixel_values"].shape == (number, 3, 16, 16)
        found = session.run(["features"], {"pixel_values": batch["pixel_values"].numpy()})[0]
        with torch.no_grad():
            wanted = run.backbone.features(run.model(), batch)
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-4)


def test_a_graph_of_texts_leaves_batch_and_length_open_and_padding_out(tmp_path):
    write_text_classifier(tmp_path, "bert", TEXT | {"num_hidden_layers": 1})  # tracing takes its time
    run = merge(tmp_path, "bert", "mingle", sites="light", steps=2, lr=0.02, gate_init="normal")
    export_run(run, "onnx", tmp_path / "out")
    session = onnxruntime.InferenceSession(
        tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    texts, model = FAMILIES["bert"].samples(3, 4), run.model()
    short, together = (run.backbone.prepare(some, run.base.checkpoint) for some in (texts[:1], texts))
    assert short["input_ids"].shape[1] != together["input_ids"].shape[1]
    for batch in (short, together):
        found = session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})
        with torch.no_grad():
            features = run.backbone.features(model, batch)
            logits = [run.backbone.classify(features, step.head) for step in run.state.steps]
        for one, two in zip(found, [features, *logits], strict=True):
            np.testing.assert_allclose(one, two.numpy(), rtol=0, atol=1e-5)
