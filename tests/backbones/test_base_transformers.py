"""Reading files under the library's own names: checked with a small stand-in for a family."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from mingle.backbones.base_transformers import TransformersBackbone
from mingle.errors import CheckpointError, UnknownNameError

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 8,
}
SWIN = {
    "image_size": 16,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [1, 1],
    "num_heads": [2, 4],
    "window_size": 4,
}


class Pictures(TransformersBackbone):
    family, model_types = "picture model", ("vit", "dinov2", "swin")
    decisive = ("model_type",)
    auto_class, heads = "AutoModelForImageClassification", ("classifier",)
    head = features = classify = prepare = None


Pictures.__abstractmethods__ = frozenset()
BACKBONE = Pictures()


def write(folder, model):
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    return folder, write(folder, ViTForImageClassification(ViTConfig(**TINY, num_labels=3)))


def built(folder, base=None):
    return BACKBONE.build(BACKBONE.open(folder, base))


def same(ours, theirs):
    own, other = ours.state_dict(), theirs.state_dict()
    assert own.keys() == {name for name in other if not name.startswith("classifier.")}
    assert all(torch.equal(own[name], other[name]) for name in own)


def test_stored_names_of_older_versions_read_as_from_pretrained_reads_them(vit):
    folder, theirs = vit
    stored = load_file(folder / "model.safetensors")
    assert "vit.encoder.layer.0.attention.attention.query.weight" in stored
    same(built(folder), theirs)


def test_names_of_the_class_itself_read_too(vit, tmp_path):
    folder, theirs = vit
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    assert BACKBONE.open(tmp_path).fingerprint == BACKBONE.open(folder).fingerprint


def test_the_bare_model_has_the_same_names(vit, tmp_path):
    bare = write(tmp_path, ViTModel(ViTConfig(**TINY)))
    stored = load_file(tmp_path / "model.safetensors")
    assert {"pooler.dense.weight", "encoder.layer.0.attention.attention.query.weight"} <= stored.keys()
    ours = built(tmp_path).state_dict()
    assert {f"vit.{name}" for name in bare.state_dict() if not name.startswith("pooler.")} == ours.keys()
    assert torch.equal(ours["vit.layers.1.mlp.fc2.weight"], bare.layers[1].mlp.fc2.weight)


def test_a_file_alone_takes_the_configuration_of_its_base(vit, tmp_path):
    folder, theirs = vit
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((folder / "model.safetensors").read_bytes())
    base = BACKBONE.open(folder)
    opened = BACKBONE.open(alone, base)
    assert opened.fingerprint == base.fingerprint
    same(BACKBONE.build(opened, base), theirs)
    with pytest.raises(CheckpointError, match=r"expected a picture model .*found None"):
        BACKBONE.open(alone)


def test_tensors_stored_as_one_are_taken_apart(tmp_path):
    torch.manual_seed(0)
    theirs = write(tmp_path, Dinov2ForImageClassification(Dinov2Config(**TINY, use_swiglu_ffn=True)))
    stored = load_file(tmp_path / "model.safetensors")
    assert "dinov2.encoder.layer.0.mlp.weights_in.weight" in stored
    same(built(tmp_path), theirs)
    stored["dinov2.encoder.layer.0.mlp.weights_in.bias"] = torch.zeros(7)
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"weights_in\.bias' holds 2 tensors .*found shape \(7,\)"):
        BACKBONE.open(tmp_path)


def test_computed_buffers_are_real(tmp_path):
    torch.manual_seed(0)
    theirs = write(tmp_path, SwinForImageClassification(SwinConfig(**SWIN)))
    ours = built(tmp_path)
    same(ours, theirs)
    found, expected = dict(ours.named_buffers()), dict(theirs.named_buffers())
    assert len(found) == 2
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_tensors_of_the_backbone_that_the_class_lacks_are_not_skipped(vit, tmp_path):
    folder, theirs = vit
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    extra = {"vit.layers.2.mlp.fc1.weight": torch.zeros(2, 2), "decoder.weight": torch.zeros(1)}
    save_file(theirs.state_dict() | extra, tmp_path / "model.safetensors")
    new = set(BACKBONE.open(tmp_path).names()) - set(BACKBONE.open(folder).names())
    assert new == {"vit.layers.2.mlp.fc1.weight"}


def test_linears_of_a_module_go_together(tmp_path):
    torch.manual_seed(0)
    write(tmp_path, Dinov2Model(Dinov2Config(**TINY, use_swiglu_ffn=True)))
    model = BACKBONE.skeleton(BACKBONE.open(tmp_path))
    block = "dinov2.encoder.layer.1"
    groups = [g.linears for g in BACKBONE.groups(model, "full") if g.name.startswith(f"{block}.")]
    assert groups == [
        tuple(f"{block}.attention.{name}" for name in ("q_proj", "k_proj", "v_proj")),
        (f"{block}.attention.o_proj",),
        (f"{block}.mlp.gate_proj", f"{block}.mlp.up_proj"),
        (f"{block}.mlp.down_proj",),
    ]
    counts = {sites: len(BACKBONE.groups(model, sites)) for sites in ("full", "light", "light+out", "mlp")}
    assert counts == {"full": 8, "light": 4, "light+out": 6, "mlp": 4}
    with pytest.raises(UnknownNameError, match="unknown sites 'lite'"):
        BACKBONE.groups(model, "lite")
    assert BACKBONE.width(model) == 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "expected a picture model .*found 'bert'"),
        ({"num_hidden_layers": "many"}, "config.json describes no vit"),
    ],
)
def test_wrong_configurations_are_one_line(vit, tmp_path, changes, message):
    folder, theirs = vit
    config = json.loads((folder / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message) as error:
        BACKBONE.open(tmp_path)
    assert "\n" not in str(error.value)
