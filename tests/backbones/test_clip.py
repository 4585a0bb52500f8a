"""What the CLIP family says about itself."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPImageProcessorPil

from mingle.backbones import BACKBONES, Head, count, take
from mingle.backbones.clip import Clip
from mingle.errors import CheckpointError, SeedsError, UnknownNameError
from mingle.layers import wrap

BACKBONE = Clip()
PREFIX = "vision_model.encoder.layers"


def random(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- layers


def test_groups_read_the_same_tensor_and_only_that(base, images):
    """Linears of one group see the identical tensor, Linears of different groups do not."""
    model = base.model()
    groups = BACKBONE.groups(model, "full")
    seen = {}
    for group in groups:
        for name in group.linears:
            model.get_submodule(name).register_forward_pre_hook(
                lambda _, args, name=name: seen.__setitem__(name, args[0])
            )
    model(**BACKBONE.prepare(images[:2], base.checkpoint))
    assert len(seen) == 12
    for group in groups:
        assert all(seen[name] is seen[group.name] for name in group.linears)
    assert len({id(seen[group.name]) for group in groups}) == len(groups) == 8


def test_norm_of_a_group_makes_the_tensor_it_reads(base, images):
    model = base.model()
    groups = [group for group in BACKBONE.groups(model, "full") if group.norm is not None]
    made, read = {}, {}
    for group in groups:
        model.get_submodule(group.norm).register_forward_hook(
            lambda _, args, output, name=group.name: made.__setitem__(name, output)
        )
        model.get_submodule(group.name).register_forward_pre_hook(
            lambda _, args, name=group.name: read.__setitem__(name, args[0])
        )
    model(**BACKBONE.prepare(images[:2], base.checkpoint))
    assert len(groups) == 4
    assert all(torch.equal(made[group.name], read[group.name]) for group in groups)


def test_every_linear_of_the_encoder_is_a_site_and_nothing_else(base):
    model = base.model()
    named = {name for group in BACKBONE.groups(model, "full") for name in group.linears}
    linears = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert named == {name for name in linears if name.startswith(PREFIX)}
    assert linears - named == {"visual_projection"}


def test_groups_can_be_told_from_a_skeleton(base):
    skeleton = BACKBONE.skeleton(base.checkpoint)
    for sites in ("full", "light", "light+out", "mlp"):
        assert BACKBONE.groups(skeleton, sites) == BACKBONE.groups(base.model(), sites)
    with pytest.raises(UnknownNameError, match="unknown sites 'lite'; did you mean light"):
        BACKBONE.groups(skeleton, "lite")


def test_wrapped_model_without_experts_is_the_base(base, images):
    batch = BACKBONE.prepare(images, base.checkpoint)
    model = base.model()
    expected = BACKBONE.features(model, batch)
    wrap(model, BACKBONE.groups(model, "full"))
    assert torch.equal(BACKBONE.features(model, batch), expected)
    assert expected.shape == (40, 24)
    assert BACKBONE.width(model) == 32


def test_computed_buffers_are_those_of_a_real_model(base):
    positions = base.model().vision_model.embeddings.position_ids
    assert positions.tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("stored", "canonical"),
    [
        ("vision_model.encoder.layers.0.mlp.fc1.weight", "vision_model.encoder.layers.0.mlp.fc1.weight"),
        ("encoder.layers.0.mlp.fc1.weight", "vision_model.encoder.layers.0.mlp.fc1.weight"),
        ("embeddings.class_embedding", "vision_model.embeddings.class_embedding"),
        ("pre_layrnorm.bias", "vision_model.pre_layrnorm.bias"),
        ("post_layernorm.bias", "vision_model.post_layernorm.bias"),
        ("visual_projection.weight", "visual_projection.weight"),
        ("embeddings.position_ids", None),
        ("vision_model.embeddings.position_ids", None),
        ("text_model.embeddings.position_ids", None),
        ("text_model.encoder.layers.0.mlp.fc1.weight", None),
        ("text_projection.weight", None),
        ("logit_scale", None),
        ("classifier.weight", "classifier.weight"),
    ],
)
def test_stored_names_have_one_name_in_the_model(stored, canonical):
    assert BACKBONE.canonical_name(stored) == canonical


# --- heads


def test_logits_are_scaled_cosines():
    features, classes = random(1, 3, 5), random(2, 4, 5)
    logits = BACKBONE.classify(
        features, Head(tuple("abcd"), {"class_embeddings": classes, "logit_scale": torch.tensor(7.0)})
    )
    for n, f in enumerate(features):
        for c, e in enumerate(classes):
            assert float(logits[n, c]) == pytest.approx(float(7 * (f @ e) / (f.norm() * e.norm())), abs=1e-5)
    scale_free = BACKBONE.classify(100 * features, Head(tuple("abcd"), {"class_embeddings": 5 * classes}))
    torch.testing.assert_close(scale_free, logits / 7 * 100, atol=1e-4, rtol=0)


@pytest.fixture
def folder(tmp_path, zoo):
    shutil.copytree(zoo / "task1", tmp_path / "model")
    return tmp_path / "model"


def configure(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_head_lies_beside_the_checkpoint(folder):
    head = BACKBONE.head(BACKBONE.open(folder))
    assert head.classes == ("class0", "class1", "class2", "class3")
    assert head.tensors["class_embeddings"].shape == (4, 24)
    (folder / "head.safetensors").unlink()
    assert BACKBONE.head(BACKBONE.open(folder)) is None


def test_classes_without_names_are_numbered(folder):
    configure(folder, id2label=None)
    assert BACKBONE.head(BACKBONE.open(folder)).classes == ("0", "1", "2", "3")


def test_names_follow_numbers_and_not_their_order_in_the_file(folder):
    configure(folder, id2label={str(i): f"name{i}" for i in (2, 0, 3, 1)})
    assert BACKBONE.head(BACKBONE.open(folder)).classes == ("name0", "name1", "name2", "name3")


def test_head_and_names_must_agree(folder):
    configure(folder, id2label={"0": "only"})
    with pytest.raises(CheckpointError, match=r"4 class embeddings, but id2label of config.json names 1"):
        BACKBONE.head(BACKBONE.open(folder))


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (None, "not a whole safetensors file"),
        ({"other": torch.zeros(4, 24)}, "expected a tensor 'class_embeddings'"),
        ({"class_embeddings": torch.zeros(24)}, "expected a tensor 'class_embeddings'"),
    ],
)
def test_broken_head_is_named(folder, tensors, reason):
    file = folder / "head.safetensors"
    if tensors is None:
        file.write_bytes(file.read_bytes()[:-3])
    else:
        save_file(tensors, file)
    with pytest.raises(CheckpointError) as error:
        BACKBONE.head(BACKBONE.open(folder))
    assert str(error.value).startswith(f"{file}: {reason}")


@pytest.mark.parametrize("classes", ["cat, dog", '"cat"', "[1, 2, 3, 4]"])
def test_class_names_in_a_head_are_a_list_of_strings(folder, classes):
    file = folder / "head.safetensors"
    save_file({"class_embeddings": torch.zeros(4, 24)}, file, metadata={"classes": classes})
    with pytest.raises(CheckpointError, match="expected classes in its metadata to be a JSON list of str"):
        BACKBONE.head(BACKBONE.open(folder))


# --- samples


MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]


@pytest.fixture
def normalised(zoo, tmp_path):
    """The base with its own mean and standard deviation, as the checkpoints of a suite have."""
    shutil.copytree(zoo / "base", tmp_path / "base")
    values = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 16},
        "crop_size": {"height": 16, "width": 16},
        "image_mean": MEAN,
        "image_std": STD,
    }
    (tmp_path / "base" / "preprocessor_config.json").write_text(json.dumps(values))
    return BACKBONE.open(tmp_path / "base")


def test_bytes_are_rescaled_and_normalised(normalised, images):
    pixels = BACKBONE.prepare(images, normalised)["pixel_values"]
    for channel in range(3):
        expected = (images[:, channel].double() / 255 - MEAN[channel]) / STD[channel]
        torch.testing.assert_close(pixels[:, channel].double(), expected, atol=1e-6, rtol=0)


def test_pictures_of_the_right_size_equal_bytes(normalised, images):
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images[:5]]
    from_pictures = BACKBONE.prepare(pictures, normalised)["pixel_values"]
    torch.testing.assert_close(
        from_pictures, BACKBONE.prepare(images[:5], normalised)["pixel_values"], atol=1e-6, rtol=0
    )


def test_pictures_of_other_sizes_are_resized_as_the_checkpoint_says(normalised):
    values = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    pictures = [Image.fromarray(values), Image.fromarray(values[:20, :20])]
    found = BACKBONE.prepare(pictures, normalised)["pixel_values"]
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_mean=MEAN, image_std=STD
    )
    expected = processor(images=pictures, return_tensors="pt")["pixel_values"]
    assert found.shape == (2, 3, 16, 16)
    assert torch.equal(found, expected)


def test_without_a_processor_config_the_size_is_that_of_the_model(base):
    picture = Image.fromarray(np.zeros((50, 70, 3), dtype=np.uint8))
    assert BACKBONE.prepare([picture], base.checkpoint)["pixel_values"].shape == (1, 3, 16, 16)


def test_floats_are_taken_as_they_are(normalised):
    pixels = random(1, 2, 3, 16, 16)
    assert BACKBONE.prepare(pixels, normalised)["pixel_values"] is pixels


@pytest.mark.parametrize("shape", [(2, 3, 16, 15), (2, 1, 16, 16), (3, 16, 16), (2, 16, 16, 3)])
def test_tensors_of_another_size_are_refused(base, shape):
    with pytest.raises(SeedsError) as error:
        BACKBONE.prepare(torch.zeros(shape, dtype=torch.uint8), base.checkpoint)
    assert str(error.value).startswith(f"images: expected a tensor (N, 3, 16, 16), found {shape}")


@pytest.mark.parametrize("text", ["{", "[]", "\udcff"])
def test_broken_processor_config_is_named(normalised, images, text):
    file = normalised.folder / "preprocessor_config.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError) as error:
        BACKBONE.prepare(images, normalised)
    assert str(error.value).startswith(f"{file}: ")
    assert "\n" not in str(error.value)


def test_batches_are_counted_and_cut():
    batch = {"a": torch.arange(5), "b": torch.arange(10).reshape(5, 2)}
    assert count(batch) == 5
    part = take(batch, slice(1, 3))
    assert (part["a"].tolist(), part["b"].tolist()) == ([1, 2], [[2, 3], [4, 5]])
    assert take(batch, torch.tensor([4, 0]))["a"].tolist() == [4, 0]


def test_the_family_is_registered():
    assert BACKBONES.get("clip") is Clip


def test_texts_are_no_images(base):
    with pytest.raises(SeedsError, match="expected pictures, found texts"):
        BACKBONE.prepare(["a cat"], base.checkpoint)
