"""Folders of OpenCLIP, against its towers written plainly."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from transformers import CLIPTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from mingle.backbones.open_clip import OpenClip
from mingle.errors import CheckpointError, MismatchError
from mingle.state import MergeRun

from ..weights.adapters import ADAPTER_FILE, saved
from .families import images
from .plain_open_clip import write_open_clip
from .whole_clip import write_clip

BACKBONE = OpenClip()


def pictures(seed=3, number=5):
    return torch.randn(number, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_features_are_those_of_the_plain_tower(tmp_path, quick_gelu):
    plain = write_open_clip(tmp_path / "base", quick_gelu=quick_gelu)
    opened = BACKBONE.open(tmp_path / "base")
    model = BACKBONE.build(opened)
    found = BACKBONE.features(model, {"pixel_values": pictures()})
    torch.testing.assert_close(found, plain.visual(pictures()), atol=1e-5, rtol=1e-5)
    assert len(opened.names()) == len(model.state_dict())


@torch.no_grad()
def test_heads_are_made_by_its_own_text_tower(tmp_path):
    write_clip(tmp_path / "whole")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "whole")
    plain = write_open_clip(tmp_path / "base", len(tokenizer))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "whole" / name, tmp_path / "base")
    head = BACKBONE.zero_shot_head(
        BACKBONE.open(tmp_path / "base"), ("cat", "a large dog"), ("a photo of {}",)
    )
    rows = [
        plain.encode_text(tokenizer(f"a photo of {name}", return_tensors="pt")["input_ids"])
        for name in ("cat", "a large dog")
    ]
    expected = normalize(torch.cat(rows), dim=-1)
    torch.testing.assert_close(head.tensors["class_embeddings"], expected, atol=1e-5, rtol=1e-5)
    assert float(head.tensors["logit_scale"]) == pytest.approx(float(torch.tensor(2.0).exp()))


def test_pictures_are_normalised_as_its_settings_say(tmp_path):
    write_open_clip(tmp_path / "base")
    found = BACKBONE.prepare(images(0, 3), BACKBONE.open(tmp_path / "base"))["pixel_values"]
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.5, 0.4, 0.3], [0.2, 0.25, 0.3]))
    torch.testing.assert_close(found, (images(0, 3).float() / 255 - mean) / std)


def test_a_fine_tuned_file_needs_no_settings_and_may_come_from_a_wrapped_model(tmp_path):
    write_open_clip(tmp_path / "base")
    base = BACKBONE.open(tmp_path / "base")
    tensors = load_file(tmp_path / "base" / "open_clip_model.safetensors")
    moved = {
        f"module.{name}": tensor + 0.01 for name, tensor in tensors.items() if name.startswith("visual.")
    }
    save_file(moved, tmp_path / "task.safetensors")
    opened = BACKBONE.open(tmp_path / "task.safetensors", base)
    assert opened.names() == base.names()
    for name in base.names():
        torch.testing.assert_close(opened.tensor(name), base.tensor(name) + 0.01)
    save_file(moved | {"module.visual.adapter": torch.zeros(2)}, tmp_path / "more.safetensors")
    run = MergeRun.create(tmp_path / "run", tmp_path / "base", method="average", backbone="open_clip")
    with pytest.raises(MismatchError, match=r"visual\.adapter: unexpected"):
        run.add(tmp_path / "more.safetensors")


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("vision_cfg", {"timm_model_name": "vit_base"}, "found vision_cfg with timm_model_name"),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, "found vision_cfg with layers of a ResNet"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "found text_cfg with hf_model_name"),
    ],
)
def test_other_architectures_are_refused_by_name(tmp_path, part, value, message):
    write_open_clip(tmp_path / "base")
    file = tmp_path / "base" / "open_clip_config.json"
    settings = json.loads(file.read_text())
    settings["model_cfg"][part] |= value
    file.write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=message):
        BACKBONE.open(tmp_path / "base")


def test_a_base_needs_its_settings(tmp_path):
    write_open_clip(tmp_path / "base")
    file = tmp_path / "base" / "open_clip_config.json"
    file.unlink()
    with pytest.raises(CheckpointError, match=r"expected open_clip_config\.json beside the weights"):
        BACKBONE.open(tmp_path / "base")
    file.write_text("{}")
    with pytest.raises(CheckpointError, match="expected model_cfg with embed_dim and vision_cfg"):
        BACKBONE.open(tmp_path / "base")


def test_settings_are_read_only_where_they_are(tmp_path):
    write_open_clip(tmp_path / "base")
    opened = BACKBONE.open(tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text(json.dumps(opened.config))
    (tmp_path / "base" / "open_clip_config.json").unlink()
    found = BACKBONE.prepare(images(0, 3), BACKBONE.open(tmp_path / "base"))["pixel_values"]
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    torch.testing.assert_close(found, (images(0, 3).float() / 255 - mean) / std)


@torch.no_grad()
def test_adapter_that_stores_fused_tensors_whole(tmp_path):
    plain = write_open_clip(tmp_path / "base")
    settings = {"target_modules": ["c_fc", "c_proj"], "modules_to_save": ["attn"]}
    folder, wrapped = saved(plain, tmp_path / "adapter", **settings)
    base = BACKBONE.open(tmp_path / "base")
    opened = BACKBONE.open(folder, base)
    query = "vision_model.encoder.layers.0.self_attn.q_proj.bias"
    assert not torch.equal(opened.tensor(query), base.tensor(query))
    found = BACKBONE.features(BACKBONE.build(opened, base), {"pixel_values": pictures()})
    expected = wrapped.base_model.model.visual(pictures())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    file = folder / ADAPTER_FILE
    stored = load_file(file)
    name = next(name for name in stored if name.endswith("visual.transformer.resblocks.0.attn.in_proj_bias"))
    save_file(stored | {name: torch.zeros(93)}, file)
    with pytest.raises(MismatchError, match=r"layers\.0\.self_attn\.q_proj\.bias: shape 31, base has 32"):
        BACKBONE.open(folder, base)


def test_adapter_of_a_fused_tensor_is_refused_by_name(tmp_path):
    plain = write_open_clip(tmp_path / "base")
    folder, _ = saved(plain, tmp_path / "adapter", target_modules=["attn", "c_fc"])
    with pytest.raises(MismatchError, match=r"visual\.transformer\.resblocks\.0\.attn\.weight: the base has"):
        BACKBONE.open(folder, BACKBONE.open(tmp_path / "base"))
