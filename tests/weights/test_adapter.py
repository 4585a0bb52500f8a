"""A LoRA adapter is the checkpoint that PEFT would merge it into; what cannot be that is refused by name."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    CLIPVisionModelWithProjection,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2Model,
)

import mingle
from mingle.backbones.clip import Clip
from mingle.errors import CheckpointError, MismatchError
from mingle.weights import check_against, open_checkpoint

from .adapters import ADAPTER_FILE, adapted, edit, saved

BACKBONE = Clip()
QV = ["q_proj", "v_proj"]
PIXELS = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
KINDS = {
    "lora": {},
    "all linear": {"target_modules": "all-linear", "r": 2},
    "every site": {"target_modules": [*QV, "k_proj", "out_proj", "fc1", "fc2"]},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {
        "rank_pattern": {"q_proj": 7, "layers.1.self_attn.v_proj": 2},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 3, ".*v_proj": 11},
    },
    "rslora with patterns": {
        "use_rslora": True,
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"v_proj": 5},
    },
    "one layer": {"layers_to_transform": [1]},
    "bias all": {"bias": "all"},
    "bias of the targets": {"bias": "lora_only"},
    "bias of B": {"lora_bias": True},
    "both biases": {"lora_bias": True, "bias": "lora_only"},
    "saved modules": {"modules_to_save": ["visual_projection", "post_layernorm"]},
    "convolution": {"target_modules": ["patch_embedding", "fc1"]},
    "dora on a convolution": {"target_modules": ["patch_embedding"], "use_dora": True},
    "position embedding": {"target_modules": ["position_embedding"]},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
}


def vision(zoo):
    return CLIPVisionModelWithProjection.from_pretrained(zoo / "base")


@pytest.fixture
def make(zoo, tmp_path):
    """Folder of an adapter of the tiny CLIP, and what its PEFT model says of some images."""

    def write(**settings):
        folder, model = saved(vision(zoo), tmp_path / "adapter", **{"target_modules": QV, **settings})
        with torch.no_grad():
            return folder, model(PIXELS).image_embeds

    return write


def opened(folder, base):
    return BACKBONE.open(folder, base.checkpoint)


def says(model):
    with torch.no_grad():
        return model(PIXELS).image_embeds


# --- the same model as PEFT's


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_outputs_are_those_of_the_adapter_model(make, base, settings):
    folder, expected = make(**settings)
    checkpoint = opened(folder, base)
    check_against(base.checkpoint, checkpoint)
    for entry in checkpoint.entries.values():
        assert torch.equal(entry.feed(hashlib.sha256()), entry.read())
    found = says(BACKBONE.build(checkpoint, base.checkpoint))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (found - says(base.model())).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["lora", "every site", "rslora", "dora", "patterns", "one layer"])
def test_one_adapter_merged_with_gate_one_is_the_adapter_model(make, zoo, tmp_path, kind):
    """An expert is exact where its rank holds the change; DoRA's, scaled by output, has full rank."""
    folder, expected = make(**KINDS[kind])
    rank = 48 if kind == "dora" else 8
    options = {"gates": "static", "static_gate": 1.0, "projection": "none", "rank": rank}
    run = mingle.MergeRun.create(tmp_path / "run", zoo / "base", options=options)
    run.add(folder)
    torch.testing.assert_close(says(run.model()), expected, atol=1e-5, rtol=0)


def test_whole_tensors_are_merged_by_methods_of_weights(make, zoo, tmp_path):
    folder, expected = make(modules_to_save=["visual_projection"], bias="all")
    run = mingle.MergeRun.create(tmp_path / "run", zoo / "base", method="average")
    run.add(folder, name="task")
    torch.testing.assert_close(says(run.model()), expected, atol=1e-5, rtol=0)
    assert run.info("task")["checkpoint"]["fingerprint"] == opened(folder, run.base).fingerprint


BERT = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 8,
    "num_labels": 3,
}
GPT2 = {"vocab_size": 30, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8, "pad_token_id": 0}
MODELS = {
    "bert": (BertForSequenceClassification, BertConfig(**BERT), {"task_type": "SEQ_CLS"}),
    "bert embeddings": (
        BertForSequenceClassification,
        BertConfig(**BERT),
        {"target_modules": ["word_embeddings", "query"]},
    ),
    "dora on embeddings": (
        BertForSequenceClassification,
        BertConfig(**BERT),
        {"target_modules": ["word_embeddings", "dense"], "use_dora": True},
    ),
    "gpt2": (GPT2Model, GPT2Config(**GPT2), {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "gpt2 dora": (
        GPT2Model,
        GPT2Config(**GPT2),
        {"target_modules": ["c_attn", "c_proj"], "use_dora": True, "fan_in_fan_out": True},
    ),
    "gpt2 square only": (GPT2Model, GPT2Config(**GPT2), {"target_modules": ["attn.c_proj"]}),
    "gpt2 embeddings": (GPT2Model, GPT2Config(**GPT2), {"target_modules": ["wte", "c_attn"]}),
}


@pytest.mark.parametrize(("kind", "config", "settings"), MODELS.values(), ids=MODELS)
def test_tensors_are_those_that_peft_merges(tmp_path, kind, config, settings):
    torch.manual_seed(0)
    model = kind(config)
    model.save_pretrained(tmp_path / "base")
    folder, wrapped = saved(model, tmp_path / "adapter", **settings)
    base = open_checkpoint(tmp_path / "base")
    found = open_checkpoint(folder, str, base)
    expected = wrapped.merge_and_unload().state_dict()
    assert set(found.names()) == set(base.names()) <= set(expected)
    for name, tensor in found.tensors():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=0, msg=name)
    changed = {name for name in base.names() if not torch.equal(base.tensor(name), found.tensor(name))}
    assert changed
    assert ("classifier.weight" in changed) == (settings.get("task_type") == "SEQ_CLS")


def test_square_weight_whose_layout_cannot_be_told(tmp_path):
    """``score`` is a Linear, ``c_proj`` a square Conv1D: PEFT keeps the flag of whichever came last."""
    model = GPT2ForSequenceClassification(GPT2Config(**GPT2))
    model.save_pretrained(tmp_path / "base")
    settings = {"target_modules": ["c_attn", "attn.c_proj"], "fan_in_fan_out": True}
    folder, _ = saved(model, tmp_path / "adapter", **settings)
    edit(folder, fan_in_fan_out=False)
    with pytest.raises(
        MismatchError, match=r"c_proj.weight: square, and fan_in_fan_out False .* wrong for .*c_attn"
    ):
        open_checkpoint(folder, str, open_checkpoint(tmp_path / "base"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_changes_of_a_base_of_low_precision_are_not_rounded_to_it(zoo, tmp_path, base, make, dtype):
    folder, _ = make()
    half_base = shutil.copytree(zoo / "base", tmp_path / "half" / "base")
    tensors = {n: t.to(dtype) for n, t in load_file(zoo / "base" / "model.safetensors").items()}
    save_file(tensors, half_base / "model.safetensors")
    half = BACKBONE.open(half_base)
    name = "vision_model.encoder.layers.0.self_attn.q_proj.weight"
    found = BACKBONE.open(folder, half)
    change = opened(folder, base).tensor(name) - base.checkpoint.tensor(name)
    assert found.tensor(name).dtype == torch.float32
    assert found.tensor("visual_projection.weight").dtype == dtype
    torch.testing.assert_close(found.tensor(name) - half.tensor(name).float(), change, atol=1e-7, rtol=0)


# --- whatever it was trained on, however it is stored


def test_adapter_of_a_bare_tower_finds_its_tensors(make, base, zoo):
    folder, expected = make()
    stored = load_file(folder / ADAPTER_FILE)
    bare = {
        name.replace("base_model.model.vision_model.", "base_model.model."): t for name, t in stored.items()
    }
    assert bare.keys() != stored.keys()
    before = opened(folder, base).fingerprint
    save_file(bare, folder / ADAPTER_FILE)
    assert opened(folder, base).fingerprint == before
    torch.testing.assert_close(
        says(BACKBONE.build(opened(folder, base), base.checkpoint)), expected, atol=1e-5, rtol=0
    )


def test_adapter_of_a_whole_clip_keeps_its_vision_part(make, base):
    folder, expected = make()
    stored = load_file(folder / ADAPTER_FILE)
    name = "base_model.model.text_model.encoder.layers.0.self_attn.q_proj.lora_{}.weight"
    text = {name.format("A"): torch.ones(4, 16), name.format("B"): torch.ones(16, 4)}
    save_file(stored | text, folder / ADAPTER_FILE)
    torch.testing.assert_close(
        says(BACKBONE.build(opened(folder, base), base.checkpoint)), expected, atol=1e-5, rtol=0
    )
    save_file(text, folder / ADAPTER_FILE)
    with pytest.raises(CheckpointError, match="changes no tensor of this architecture"):
        opened(folder, base)


@pytest.mark.parametrize("change", ["order", "A", "B", "scale", "base"])
def test_fingerprint_is_of_what_the_adapter_is_made_of(make, base, zoo, change):
    folder, _ = make()
    before = opened(folder, base).fingerprint
    stored = load_file(folder / ADAPTER_FILE)
    on = base.checkpoint
    if change == "order":
        save_file(dict(reversed(stored.items())), folder / ADAPTER_FILE, metadata={"other": "1"})
    elif change == "scale":
        edit(folder, lora_alpha=7)
    elif change == "base":
        on = BACKBONE.open(zoo / "task1")
        edit(folder, base_model_name_or_path=on.source)
    else:
        name = next(n for n in stored if f"lora_{change}" in n)
        stored[name].view(torch.int32)[0, 0] ^= 1
        save_file(stored, folder / ADAPTER_FILE)
    assert (BACKBONE.open(folder, on).fingerprint == before) == (change == "order")


def test_adapter_by_its_file_beside_a_whole_model(make, base, zoo):
    folder, expected = make()
    shutil.copy(zoo / "task1" / "model.safetensors", folder)
    with pytest.raises(CheckpointError, match=r"holds a whole model \(model.safetensors\) and an adapter"):
        opened(folder, base)
    found = says(BACKBONE.build(opened(folder / ADAPTER_FILE, base), base.checkpoint))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


# --- what is refused


def refused(folder, base, kind=CheckpointError):
    with pytest.raises(kind) as error:
        opened(folder, base)
    assert "\n" not in str(error.value) or kind is MismatchError
    return str(error.value)


FEATURES = {
    "peft_type": ("IA3", "expected peft_type 'LORA', found 'IA3'"),
    "trainable_token_indices": ([1, 2], "trainable_token_indices: not representable"),
    "alora_invocation_tokens": ([5], "alora_invocation_tokens: not representable"),
    "use_qalora": (True, "use_qalora: not representable"),
    "target_parameters": (["experts.w1"], "target_parameters: not representable"),
    "layer_replication": ([[0, 2]], "layer_replication: not representable"),
    "megatron_config": ({"tp": 2}, "megatron_config: not representable"),
    "use_something_new": (True, "use_something_new: not representable"),
    "init_lora_weights": ("pissa_niter_4", "'pissa_niter_4' changed the base too"),
    "r": ("eight", "expected numbers"),
    "rank_pattern": ([4], "expected numbers"),
    "alpha_pattern": ({"q_proj(": 3}, "name (missing ), unterminated subpattern"),
}


@pytest.mark.parametrize("key", FEATURES)
def test_features_that_cannot_be_represented_are_named(make, base, key):
    folder, _ = make()
    value, message = FEATURES[key]
    found = refused(edit(folder, **{key: value}), base)
    assert found.startswith(f"{folder / 'adapter_config.json'}: ")
    assert message in found


@pytest.mark.parametrize("start", ["loftq", "olora", "corda", "lora_ga", "pissa"])
def test_adapters_that_changed_their_base_are_refused(make, base, start):
    folder, _ = make()
    message = refused(edit(folder, init_lora_weights=start), base)
    assert "path_initial_model_for_weight_conversion" in message


def test_bias_of_b_does_not_go_with_magnitudes(make, base):
    folder, _ = make(use_dora=True)
    assert "lora_bias together with use_dora" in refused(edit(folder, lora_bias=True), base)


def test_every_mismatch_is_listed(make, base):
    folder, _ = make()
    stored = load_file(folder / ADAPTER_FILE)
    layer = "base_model.model.vision_model.encoder.layers."
    changes = {
        f"{layer}0.self_attn.q_proj.lora_A.weight": torch.ones(4, 40),
        f"{layer}0.self_attn.v_proj.lora_A.weight": torch.ones(3, 32),
        f"{layer}7.self_attn.v_proj.lora_A.weight": torch.ones(4, 32),
        f"{layer}7.self_attn.v_proj.lora_B.weight": torch.ones(32, 4),
        f"{layer}1.self_attn.q_proj.lora_magnitude_vector": torch.ones(32),
        "base_model.model.visual_projection.weight": torch.ones(24, 40),
    }
    save_file(stored | changes, folder / ADAPTER_FILE)
    message = refused(edit(folder, base_model_name_or_path="other/base"), base, MismatchError)
    assert "(adapter, trained on other/base): 5 mismatches" in message
    for line in (
        "visual_projection.weight: shape 24×40, base has 24×32",
        "layers.0.self_attn.q_proj.weight: B A is 32×40, base has 32×32",
        "layers.0.self_attn.v_proj.weight: A 3×32 and B 32×4 are not of rank 4",
        "layers.7.self_attn.v_proj.weight: the base has no such tensor",
        "layers.1.self_attn.q_proj.weight: expected the parts down, up, found down, magnitude, up",
    ):
        assert line in message


def test_adapter_of_another_architecture(zoo, base, tmp_path):
    folder, _ = saved(BertForSequenceClassification(BertConfig(**BERT)), tmp_path / "bert")
    message = refused(folder, base, MismatchError)
    assert (
        "bert.encoder.layer.0.attention.self.query.weight: the base has no such tensor to change" in message
    )


@pytest.mark.parametrize("kind", ["hub ids", "paths"])
def test_adapter_of_another_base(make, base, tmp_path, kind):
    """Two hub ids, or two folders, are of the same model where they end alike."""
    folder, _ = make()
    if kind == "hub ids":
        source, same, other = "openai/clip-vit-base", "mirror/CLIP-ViT-base", "openai/clip-vit-large"
    else:
        source, same, other = (str(tmp_path / name) for name in ("clip", "copies/clip", "second"))
        for path in (source, same, other):
            Path(path).mkdir(parents=True)
    run_base = replace(base.checkpoint, source=source)
    open_checkpoint(edit(folder, base_model_name_or_path=same), base=run_base)
    open_checkpoint(edit(folder, base_model_name_or_path="neither/of-a-kind/at-all"), base=run_base)
    edit(folder, base_model_name_or_path=other)
    with pytest.raises(CheckpointError) as refusal:
        open_checkpoint(folder, base=run_base)
    assert f"expected the run's base {source}, found {other}; merge an adapter" in str(refusal.value)
    config = base.checkpoint.config | {"_name_or_path": other}
    assert open_checkpoint(folder, base=replace(run_base, config=config)).changes


def test_foreign_parts_are_named(make, base):
    folder, _ = make()
    name = "base_model.model.embeddings.token_adapter.trainable_tokens_delta"
    save_file(load_file(folder / ADAPTER_FILE) | {name: torch.ones(2, 2)}, folder / ADAPTER_FILE)
    assert f"{name!r} is no part of a LoRA adapter" in refused(folder, base)


def test_pickled_adapter_is_not_opened(make, base, monkeypatch):
    folder, _ = make()
    torch.save(load_file(folder / ADAPTER_FILE), folder / "adapter_model.bin")
    (folder / ADAPTER_FILE).unlink()
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("a pickle was opened"))
    file = folder / "adapter_model.bin"
    message = refused(folder, base)
    assert message.startswith(f"{file}: a pickle can run code")
    assert message.endswith(f"mingle convert {file}")


def test_base_that_is_an_adapter(make, tmp_path):
    folder, _ = make()
    with pytest.raises(CheckpointError, match="an adapter holds only changes to its base"):
        mingle.MergeRun.create(tmp_path / "run", folder)
    assert not (tmp_path / "run").exists()


def test_refusals_come_before_anything_is_written(make, zoo, tmp_path):
    folder, _ = make()
    run = mingle.MergeRun.create(tmp_path / "run", zoo / "base", method="average")
    with pytest.raises(CheckpointError, match="use_qalora"):
        run.add(edit(folder, use_qalora=True))
    assert run.tasks == ()
    edit(folder, use_qalora=False)
    run.add(folder)
    assert json.loads((folder / "adapter_config.json").read_text())["use_qalora"] is False
    assert run.tasks == ("adapter",)


def test_tied_tensor_is_changed_in_one_place_only(make, base):
    folder, _ = make(modules_to_save=["visual_projection"])
    adapter = open_checkpoint(folder, base=base.checkpoint)
    adapter.check_tied({"head.weight": "post_layernorm.weight"})
    with pytest.raises(
        CheckpointError, match=r"changes visual_projection.weight, one tensor in several places"
    ):
        adapter.check_tied({"visual_projection.weight": "shared.weight"})


def test_random_adapters_are_not_all_zero(zoo):
    """The tests above compare something."""
    model = adapted(vision(zoo), target_modules=QV)
    assert all(p.abs().max() > 0.1 for p in model.parameters() if p.requires_grad)
