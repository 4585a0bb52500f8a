"""Heads out of class names, against transformers' own text features."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import CLIPTokenizer

from mingle.backbones.clip import Clip
from mingle.errors import CheckpointError, ConfigError

from .whole_clip import write_clip

BACKBONE = Clip()
CLASSES = ("cat", "dog", "a very long name of a very odd bird")
TEMPLATES = ("a photo of a {}.", "{}", "the {} in the {}.")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip") / "whole"
    return folder, write_clip(folder)


@pytest.fixture
def opened(whole):
    return BACKBONE.open(whole[0])


def plainly(model, tokenizer, classes, templates):
    """One text at a time, no padding: mean of unit vectors, then a unit vector."""
    rows = []
    for name in classes:
        total = 0
        for template in templates:
            tokens = tokenizer(
                template.replace("{}", name), return_tensors="pt", truncation=True, max_length=32
            )
            found = model.get_text_features(**tokens)
            features = (found if isinstance(found, torch.Tensor) else found.pooler_output)[0]
            total = total + features / features.norm()
        rows.append((total / len(templates)) / (total / len(templates)).norm())
    return torch.stack(rows)


@torch.no_grad()
@pytest.mark.parametrize("templates", [TEMPLATES, TEMPLATES[:1]])
def test_embeddings_are_means_of_unit_text_features(whole, opened, templates):
    folder, model = whole
    head = BACKBONE.zero_shot_head(opened, CLASSES, templates)
    expected = plainly(model, CLIPTokenizer.from_pretrained(folder), CLASSES, templates)
    assert head.classes == CLASSES
    torch.testing.assert_close(head.tensors["class_embeddings"], expected, atol=1e-5, rtol=0)
    assert float(head.tensors["logit_scale"]) == pytest.approx(float(model.logit_scale.exp()))
    assert (expected @ expected.mT - torch.eye(3)).abs().max() < 0.99


def test_configurations_of_the_first_clips_mean_the_same(whole, opened, tmp_path):
    """They state an end of text (2) that is none; the tower then reads where the largest token is."""
    folder = shutil.copytree(whole[0], tmp_path / "whole")
    config = json.loads((folder / "config.json").read_text())
    legacy = {
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "torch_dtype": None,
        "bad_words_ids": None,
        "do_sample": False,
        "max_length": 20,
        "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
        "transformers_version": "4.16.0.dev0",
        "_name_or_path": "",
    }
    config["text_config"] |= legacy
    (folder / "config.json").write_text(json.dumps(config))
    found = BACKBONE.zero_shot_head(BACKBONE.open(folder), CLASSES, TEMPLATES)
    expected = BACKBONE.zero_shot_head(opened, CLASSES, TEMPLATES)
    assert torch.equal(found.tensors["class_embeddings"], expected.tensors["class_embeddings"])


def test_default_template(opened):
    given = BACKBONE.zero_shot_head(opened, CLASSES, ["a photo of a {}."])
    assert torch.equal(
        BACKBONE.zero_shot_head(opened, CLASSES).tensors["class_embeddings"],
        given.tensors["class_embeddings"],
    )


@torch.no_grad()
def test_logits_are_those_of_the_whole_model(whole, opened, images):
    """From pictures and names to logits, as CLIPModel computes them."""
    folder, model = whole
    head = BACKBONE.zero_shot_head(opened, CLASSES[:2], ["{}"])
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images[:4]]
    batch = BACKBONE.prepare(pictures, opened)
    found = BACKBONE.logits(BACKBONE.build(opened), batch, head)
    tokens = CLIPTokenizer.from_pretrained(folder)(list(CLASSES[:2]), padding=True, return_tensors="pt")
    expected = model(**tokens, pixel_values=batch["pixel_values"]).logits_per_image
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_first_preprocessor_configs_crop_the_middle(opened):
    """``size`` and ``crop_size`` as plain numbers: shortest side to the size, then the middle square."""
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 255
    batch = BACKBONE.prepare([Image.fromarray(wide)], opened)
    assert batch["pixel_values"].shape == (1, 3, 16, 16)
    white = (1 - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    )
    torch.testing.assert_close(batch["pixel_values"][0, :, 8, 8], white, atol=1e-5, rtol=0)
    assert batch["pixel_values"].min() > 0


# --- what is refused


@pytest.mark.parametrize(
    ("classes", "templates", "message"),
    [
        ([], None, "class names: expected at least one name"),
        (["cat", "dog", "cat"], None, "class names: every name once, found 'cat' more than once"),
        (["cat"], ["a photo"], "templates: expected {} where the class name goes, found 'a photo'"),
    ],
)
def test_names_and_templates_that_cannot_be_meant(opened, classes, templates, message):
    with pytest.raises(ConfigError) as error:
        BACKBONE.zero_shot_head(opened, classes, templates)
    assert str(error.value).startswith(message)


def test_vision_tower_alone_has_no_text_tower(base):
    with pytest.raises(CheckpointError, match="need the text tower of a whole CLIP"):
        BACKBONE.zero_shot_head(base.checkpoint, ["cat"])


def test_whole_model_without_tokenizer(whole, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "whole")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=r"class names need tokenizer\.json"):
        BACKBONE.zero_shot_head(BACKBONE.open(folder), ["cat"])
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="tokenizer not readable"):
        BACKBONE.zero_shot_head(BACKBONE.open(folder), ["cat"])


def test_configuration_that_does_not_fit_the_weights(whole, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "whole")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_size"] = 24
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="give no text tower"):
        BACKBONE.zero_shot_head(BACKBONE.open(folder), ["cat"])


def test_head_is_a_unit_vector_per_class(opened):
    rows = BACKBONE.zero_shot_head(opened, CLASSES, TEMPLATES).tensors["class_embeddings"]
    torch.testing.assert_close(rows, normalize(rows, dim=-1), atol=1e-6, rtol=0)
