"""What image classifiers say about themselves: their own class's logits, pictures in, heads out."""

import json
import shutil
from functools import partial

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    BitImageProcessorPil,
    DeiTForImageClassificationWithTeacher,
)

from mingle.backbones import BACKBONES, Head
from mingle.backbones.image_classifier import ImageClassifier
from mingle.errors import CheckpointError, ConfigError, SeedsError
from mingle.evaluation import gate_activations
from mingle.evaluation.matrix import ScoredTask
from mingle.layers import wrap
from mingle.methods import Base
from mingle.state import MergeRun

from .families import FAMILIES, IMAGES, images

BACKBONE = ImageClassifier()
OLD = {
    "vit": "vit.encoder.layer.0.attention.attention.query.weight",
    "deit": "deit.encoder.layer.0.attention.attention.query.weight",
    "dinov2": "dinov2.encoder.layer.0.attention.attention.query.weight",
    "dinov2 swiglu": "dinov2.encoder.layer.0.mlp.weights_in.weight",
    "dinov2_with_registers": "dinov2_with_registers.encoder.layer.0.attention.attention.query.weight",
    "beit": "beit.encoder.layer.0.attention.attention.query.weight",
    "swin": "swin.encoder.layers.0.blocks.0.attention.self.query.weight",
    "swinv2": "swinv2.encoder.layers.0.blocks.0.attention.self.query.weight",
}


@pytest.fixture(scope="module", params=IMAGES)
def family(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    FAMILIES[request.param].write(root)
    return request.param, root


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    root = tmp_path_factory.mktemp("vit")
    FAMILIES["vit"].write(root)
    return root


@pytest.fixture
def task(vit, tmp_path):
    return shutil.copytree(vit / "task1", tmp_path / "task")


def configure(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- the model and its head


@torch.no_grad()
def test_logits_are_those_of_the_class_with_a_head(family):
    name, root = family
    assert OLD[name] in load_file(root / "task1" / "model.safetensors")
    theirs = AutoModelForImageClassification.from_pretrained(root / "task1").eval()
    base = BACKBONE.open(root / "base")
    opened = BACKBONE.open(root / "task1", base)
    head = BACKBONE.head(opened, base=base)
    batch = BACKBONE.prepare(images(1, 4), base)
    model = BACKBONE.build(opened, base)
    assert head.classes == ("class0", "class1", "class2")
    assert torch.equal(BACKBONE.classify(BACKBONE.features(model, batch), head), theirs(**batch).logits)
    assert torch.equal(model.state_dict()[opened.names()[0]], theirs.state_dict()[opened.names()[0]])


def test_the_bare_model_is_a_base(family, tmp_path):
    """A pretrained model without a head, stored without prefix, reads as the base of the fine-tuned ones."""
    _, root = family
    AutoModel.from_pretrained(root / "base").save_pretrained(tmp_path)
    assert not any(name.startswith("classifier") for name in load_file(tmp_path / "model.safetensors"))
    assert BACKBONE.open(tmp_path).fingerprint == BACKBONE.open(root / "base").fingerprint
    assert BACKBONE.head(BACKBONE.open(tmp_path)) is None


@torch.no_grad()
def test_a_gate_is_one_number_per_picture(family):
    """Also where a layer sees a picture in windows, and whatever else is in the batch."""
    _, root = family
    base = Base(BACKBONE, BACKBONE.open(root / "base"))
    model = base.model()
    layers = wrap(model, BACKBONE.groups(model, "full"))
    seen = {}
    for name, layer in layers.items():
        layer.gate.append(torch.ones(layer.linear.in_features), torch.tensor(0.0))
        layer.register_forward_pre_hook(
            lambda layer, args, name=name: seen.__setitem__(name, layer.gate(layer.pool(args[0])))
        )
    model(BACKBONE.prepare(images(2, 3), base.checkpoint)["pixel_values"])
    for name, gates in seen.items():
        rows = gates.reshape(3, -1)
        assert torch.equal(rows, rows[:, :1].expand_as(rows)), name
        assert len(rows[:, 0].unique()) == 3, name


def test_mean_gates_are_per_picture_too(tmp_path):
    """What an evaluation reports of gates, for a family that cuts pictures into windows."""
    FAMILIES["swin"].write(tmp_path)
    run = MergeRun.create(tmp_path / "run", tmp_path / "base", preset="static", backbone="image_classifier")
    run.add(tmp_path / "task1", seeds=images(1, 15))
    batches = partial(BACKBONE.prepare, base=run.base.checkpoint)
    tests = {"task1": ScoredTask("task1", images(2, 3), torch.zeros(3, dtype=torch.int64), batches)}
    heads = {step.task: step.head for step in run.state.steps}
    found = gate_activations(BACKBONE, run.model(), heads, tests)
    assert torch.tensor(found.mean).sub(0.3).abs().max() < 1e-6


def test_heads_may_be_given(vit, task, tmp_path):
    base = BACKBONE.open(vit / "base")
    opened = BACKBONE.open(task, base)
    own = BACKBONE.head(opened, base=base)
    weight = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    given = BACKBONE.head(opened, weight, base=base)
    features = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(BACKBONE.classify(features, given), features @ weight.T)
    assert given.classes == own.classes
    save_file(own.tensors, tmp_path / "other.safetensors")
    found = BACKBONE.head(BACKBONE.open(vit / "base"), tmp_path / "other.safetensors", base=base)
    assert torch.equal(BACKBONE.classify(features, found), BACKBONE.classify(features, own))
    save_file({name: 2 * tensor for name, tensor in own.tensors.items()}, task / "head.safetensors")
    beside = BACKBONE.head(opened, base=base)
    assert torch.equal(beside.tensors["classifier.weight"], 2 * own.tensors["classifier.weight"])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"classifier.weight": torch.zeros(3, 32)}, r"'classifier\.bias': expected \(3,\), found none"),
        ({"class_embeddings": torch.zeros(3, 32)}, r"'class_embeddings': expected none, found \(3, 32\)"),
        (
            {"classifier.weight": torch.zeros(3, 31), "classifier.bias": torch.zeros(3)},
            r"'classifier\.weight': expected \(3, 32\), found \(3, 31\)",
        ),
        (
            {"classifier.weight": torch.full((3, 32), torch.nan), "classifier.bias": torch.zeros(3)},
            "the head holds NaN",
        ),
        (
            {"classifier.weight": torch.zeros(4, 32), "classifier.bias": torch.zeros(4)},
            r"4 classifier rows, but id2label of config\.json names 3 classes",
        ),
    ],
)
def test_heads_that_do_not_fit_are_named(vit, task, tensors, message):
    save_file(tensors, task / "head.safetensors")
    base = BACKBONE.open(vit / "base")
    with pytest.raises(CheckpointError, match=message) as error:
        BACKBONE.head(BACKBONE.open(task, base), base=base)
    assert str(error.value).startswith(str(task / "head.safetensors"))
    assert "\n" not in str(error.value)


def test_labels_that_are_not_the_heads_stop_before_anything_is_computed(vit, task, tmp_path):
    configure(task, id2label={"0": "only"})
    run = MergeRun.create(tmp_path / "run", vit / "base", method="average", backbone="image_classifier")
    with pytest.raises(CheckpointError, match=r"3 classifier rows, but id2label .* names 1 classes"):
        run.add(task)
    configure(task, id2label={str(i): str(i) for i in range(3)}, problem_type="multi_label_classification")
    with pytest.raises(CheckpointError, match="one class per sample, found problem_type 'multi_label"):
        run.add(task)
    assert run.tasks == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, r"hidden_act 'relu' \(base 'gelu'\)"),
        ({"layer_norm_eps": 0.1}, r"layer_norm_eps 0\.1 \(base 1e-12\)"),
        ({"num_attention_heads": 2}, r"num_attention_heads 2 \(base 4\)"),
    ],
)
def test_settings_that_change_the_function_must_agree(vit, task, changes, message):
    configure(task, **changes)
    base = BACKBONE.open(vit / "base")
    with pytest.raises(CheckpointError, match=message):
        BACKBONE.check_family(BACKBONE.open(task, base), base)


@pytest.mark.parametrize(
    ("backbone", "family", "file", "written"),
    [
        ("image_classifier", "vit", "preprocessor_config.json", {"image_mean": [0.485, 0.456, 0.406]}),
        ("clip", "clip", "preprocessor_config.json", {"image_std": [0.5, 0.5, 0.5]}),
        ("open_clip", "open_clip", "open_clip_config.json", {"preprocess_cfg": {"mean": [0.1, 0.1, 0.1]}}),
    ],
)
def test_pictures_must_be_normalised_as_the_base_does_it(tmp_path, backbone, family, file, written):
    FAMILIES[family].write(tmp_path)
    described = BACKBONES.get(backbone)()
    base = described.open(tmp_path / "base")
    path = tmp_path / "task1" / file
    before = json.loads(path.read_text()) if path.exists() else {}
    same = described.processor(base)
    if backbone != "open_clip":
        before |= {"image_mean": [x + 1e-7 for x in same.image_mean], "image_std": list(same.image_std)}
    path.write_text(json.dumps(before))
    described.check_family(described.open(tmp_path / "task1", base), base)
    path.write_text(json.dumps(before | written))
    with pytest.raises(
        CheckpointError, match=r"task1: normalises .*: image_(mean|std) \[.* \(base "
    ) as error:
        described.check_family(described.open(tmp_path / "task1", base), base)
    assert "\n" not in str(error.value)


def test_class_names_that_contradict_their_numbers(vit, task):
    base = BACKBONE.open(vit / "base")
    names = ["crane", "dog", "crane"]
    numbered = {str(i): name for i, name in enumerate(names)}
    for numbers in ({"crane": 2, "dog": 1}, {f"LABEL_{i}": i for i in range(3)}):
        configure(task, id2label=numbered, label2id=numbers)
        assert BACKBONE.head(BACKBONE.open(task, base), base=base).classes == tuple(names)
    configure(task, id2label=numbered, label2id={"crane": 1, "dog": 0})
    with pytest.raises(CheckpointError, match="contradict each other: class 'crane' is 0 and 1; correct"):
        BACKBONE.head(BACKBONE.open(task, base), base=base)


def test_a_distilled_model_is_opened_without_its_two_heads(tmp_path):
    torch.manual_seed(0)
    config = AutoConfig.for_model("deit", **IMAGES["deit"][1], num_labels=3)
    DeiTForImageClassificationWithTeacher(config).save_pretrained(tmp_path)
    opened = BACKBONE.open(tmp_path)
    assert opened.config["architectures"] == ["DeiTForImageClassificationWithTeacher"]
    assert all(name.startswith("deit.") for name in opened.names())
    features = BACKBONE.features(BACKBONE.build(opened), BACKBONE.prepare(images(0, 2), opened))
    assert features.shape == (2, 32)
    assert BACKBONE.head(opened) is None


def test_a_model_of_another_family_is_not_a_fine_tuning(vit, tmp_path):
    FAMILIES["deit"].write(tmp_path)
    base = BACKBONE.open(vit / "base")
    with pytest.raises(CheckpointError, match=r"model_type 'deit' \(base 'vit'\)"):
        BACKBONE.check_family(BACKBONE.open(tmp_path / "task1", base), base)


def test_a_file_without_a_configuration_is_merged(vit, tmp_path):
    alone = tmp_path / "weights" / "task1.safetensors"
    alone.parent.mkdir()
    shutil.copy(vit / "task1" / "model.safetensors", alone)
    run = MergeRun.create(tmp_path / "run", vit / "base", method="average", backbone="image_classifier")
    step = run.add(alone, name="task1")
    expected = BACKBONE.head(BACKBONE.open(vit / "task1")).tensors
    assert step.head.classes == ("0", "1", "2")
    assert all(torch.equal(step.head.tensors[name], expected[name]) for name in expected)


def test_routed_mlps_need_mlps_that_are_modules(family, tmp_path):
    name, root = family
    model = BACKBONE.skeleton(BACKBONE.open(root / "base"))
    if name == "swinv2":
        with pytest.raises(ConfigError, match="the MLPs of Swinv2ForImageClassification are no modules"):
            BACKBONE.groups(model, "mlp")
        with pytest.raises(ConfigError, match="methods that route whole MLPs"):
            MergeRun.create(tmp_path / "run", root / "base", method="wemoe", backbone="image_classifier")
        return
    named = {part.rpartition(".mlp.")[2] for group in BACKBONE.groups(model, "mlp") for part in group.linears}
    assert named == ({"gate_proj", "up_proj", "down_proj"} if "swiglu" in name else {"fc1", "fc2"})


# --- pictures


@pytest.fixture
def processed(vit, tmp_path):
    folder = shutil.copytree(vit / "base", tmp_path / "base")
    processor = BitImageProcessorPil(
        size={"shortest_edge": 20},
        crop_size={"height": 16, "width": 16},
        image_mean=[0.1, 0.2, 0.3],
        image_std=[0.5, 0.6, 0.7],
    )
    processor.save_pretrained(folder)
    return BACKBONE.open(folder), processor


def test_pictures_go_through_the_models_own_processor(processed):
    opened, processor = processed
    pictures = [Image.fromarray(x.permute(1, 2, 0).numpy()).resize((25, 31)) for x in images(1, 2)]
    found = BACKBONE.prepare(pictures, opened)["pixel_values"]
    expected = processor(images=pictures, return_tensors="pt")["pixel_values"]
    assert found.shape == (2, 3, 16, 16)
    assert torch.equal(found, expected)


def test_integers_are_normalised_as_the_processor_does_it(processed, vit):
    opened, _ = processed
    samples = images(1, 2)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7]))
    torch.testing.assert_close(
        BACKBONE.prepare(samples, opened)["pixel_values"], (samples / 255 - mean) / std
    )
    plain = BACKBONE.prepare(samples, BACKBONE.open(vit / "base"))["pixel_values"]
    torch.testing.assert_close(plain, samples / 127.5 - 1)
    picture = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in samples]
    torch.testing.assert_close(
        BACKBONE.prepare(picture, BACKBONE.open(vit / "base"))["pixel_values"], plain, atol=1e-5, rtol=0
    )


def test_samples_that_are_no_pictures_are_refused(processed):
    opened, _ = processed
    with pytest.raises(SeedsError, match="expected pictures, found texts"):
        BACKBONE.prepare(["a cat"], opened)
    with pytest.raises(SeedsError, match=r"expected a tensor \(N, 3, 16, 16\), found \(2, 3, 20, 20\)"):
        BACKBONE.prepare(torch.zeros(2, 3, 20, 20), opened)
    path = opened.folder / "preprocessor_config.json"
    path.write_text('{"image_processor_type": "NoProcessor"}')
    with pytest.raises(CheckpointError, match="describes no image processor") as error:
        BACKBONE.prepare(images(1, 2), opened)
    assert "\n" not in str(error.value)


def test_the_family_is_registered():
    assert BACKBONES.get("image_classifier") is ImageClassifier
    features = torch.eye(2, 3)
    head = Head(
        ("a", "b"), {"classifier.weight": torch.ones(2, 3), "classifier.bias": torch.tensor([0.0, 1])}
    )
    assert BACKBONE.decide(features, head).tolist() == [1, 1]
