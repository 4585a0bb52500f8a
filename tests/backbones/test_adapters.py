"""Adapters in the families: with gate one the merged model is the adapter model, its head included."""

import pytest
import torch
import transformers
from safetensors.torch import load_file

from mingle.backbones import BACKBONES
from mingle.errors import CheckpointError
from mingle.state import MergeRun

from ..weights.adapters import library, saved
from .families import FAMILIES

CLASSES = 5
ONE = {"gates": "static", "static_gate": 1.0, "projection": "none", "rank": 32}
KINDS = {
    "vit": ("AutoModelForImageClassification", ["q_proj", "v_proj"]),
    "dinov2": ("AutoModelForImageClassification", ["q_proj", "v_proj", "fc1"]),
    "bert": ("AutoModelForSequenceClassification", ["query", "value", "output.dense"]),
    "roberta": ("AutoModelForSequenceClassification", ["query", "value"]),
}


def adapter_of(root, family, **settings):
    """An adapter of the family's base, trained as a classifier of five classes, and its PEFT model."""
    auto, targets = KINDS[family]
    with library():
        torch.manual_seed(4)
        model = getattr(transformers, auto).from_pretrained(
            root / "base", num_labels=CLASSES, ignore_mismatched_sizes=True
        )
    return saved(
        model, root / "adapter", **{"target_modules": targets, "modules_to_save": ["classifier"], **settings}
    )


@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"]
)
@pytest.mark.parametrize("family", KINDS)
@torch.no_grad()
def test_one_adapter_merged_with_gate_one_is_the_adapter_model(tmp_path, family, settings):
    kind = FAMILIES[family]
    kind.write(tmp_path)
    folder, wrapped = adapter_of(tmp_path, family, **settings)
    run = MergeRun.create(tmp_path / "run", tmp_path / "base", backbone=kind.backbone, options=ONE)
    run.add(folder, name="task")
    samples = kind.samples(9, 4)
    batch = run.backbone.prepare(samples, run.base.checkpoint)
    found, classes = run.predict(samples, "task")
    assert classes == tuple("01234")
    torch.testing.assert_close(found, wrapped(**batch).logits.softmax(-1), atol=1e-5, rtol=0)
    head = run.state.step("task").head
    logits = run.backbone.classify(run.backbone.features(run.model(), batch), head)
    torch.testing.assert_close(logits, wrapped(**batch).logits, atol=1e-5, rtol=0)


def test_head_under_a_low_rank_change(tmp_path):
    FAMILIES["vit"].write(tmp_path)
    backbone = BACKBONES.get("image_classifier")()
    with library():
        model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "base")
    folder, wrapped = saved(model, tmp_path / "adapter", target_modules=["q_proj", "classifier"])
    base = backbone.open(tmp_path / "base")
    head = backbone.head(backbone.open(folder, base), base=base)
    merged = wrapped.merge_and_unload().state_dict()
    assert not torch.allclose(
        merged["classifier.weight"], load_file(tmp_path / "base" / "model.safetensors")["classifier.weight"]
    )
    torch.testing.assert_close(
        head.tensors["classifier.weight"], merged["classifier.weight"], atol=1e-6, rtol=0
    )


def t5(root, **settings):
    FAMILIES["t5"].write(root)
    with library():
        model = transformers.T5ForConditionalGeneration.from_pretrained(root / "base")
    return saved(model, root / "adapter", **settings)


def test_t5_adapter(tmp_path):
    folder, wrapped = t5(tmp_path, target_modules=["q", "v", "wi"])
    options = ONE | {"rank": 64}
    run = MergeRun.create(tmp_path / "run", tmp_path / "base", backbone="seq2seq", options=options)
    run.add(folder, name="task")
    batch = run.backbone.prepare(FAMILIES["t5"].samples(9, 3), run.base.checkpoint)
    batch["decoder_input_ids"] = torch.tensor([[0, 3, 4]] * 3)
    with torch.no_grad():
        found = run.model()(**batch, use_cache=False).logits
        torch.testing.assert_close(found, wrapped(**batch).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("target", ["shared", "lm_head"])
def test_adapter_of_a_tied_embedding(tmp_path, target):
    folder, _ = t5(tmp_path, target_modules=["q", target])
    backbone = BACKBONES.get("seq2seq")()
    base = backbone.open(tmp_path / "base")
    with pytest.raises(
        CheckpointError, match=rf"changes {target}.weight, one tensor in several places of the base"
    ):
        backbone.open(folder, base)


WRITERS = [name for name, family in FAMILIES.items() if family.backbone == "causal_lm"]


def writer(root, family, *targets):
    FAMILIES[family].write(root)
    with library():
        model = transformers.AutoModelForCausalLM.from_pretrained(root / "base")
    return saved(model, root / "adapter", target_modules=list(targets), task_type="CAUSAL_LM")


@pytest.mark.parametrize("family", WRITERS)
def test_adapters_of_language_models(tmp_path, family):
    """GPT-2's Conv1D too, whose square weight does not show that it is stored the other way round."""
    targets = ("c_attn", "c_proj", "c_fc") if family == "gpt2" else ("q_proj", "v_proj", "down_proj")
    folder, wrapped = writer(tmp_path, family, *targets)
    run = MergeRun.create(tmp_path / "run", tmp_path / "base", backbone="causal_lm", options=ONE)
    run.add(folder, name="task")
    batch = run.backbone.prepare(FAMILIES[family].samples(9, 3), run.base.checkpoint)
    with torch.no_grad():
        torch.testing.assert_close(run.model()(**batch).logits, wrapped(**batch).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("target", ["wte", "lm_head"])
@pytest.mark.parametrize("family", [name for name in WRITERS if name == "gpt2"])
def test_adapter_of_the_tied_output_of_a_language_model(tmp_path, family, target):
    folder, _ = writer(tmp_path, family, "c_attn", target)
    backbone = BACKBONES.get("causal_lm")()
    with pytest.raises(
        CheckpointError, match=r"one tensor in several places of the base \(lm_head.weight, transf"
    ):
        backbone.open(folder, backbone.open(tmp_path / "base"))
