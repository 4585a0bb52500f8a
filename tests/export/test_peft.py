"""Experts as LoRA adapters."""

import json

import pytest
import torch
from peft import PeftModel

from mingle.errors import ExportError
from mingle.export import export_run
from mingle.layers import ClosedFormGate, Decision
from tests.export.conftest import TASKS, merge


def with_gates(run, chosen):
    """The merged model with the gate of one task at 1 and all others at 0."""
    model = run.model()
    for module in model.modules():
        if isinstance(module, ClosedFormGate):
            module.decision = Decision("raw")
            module.weight.zero_()
            module.weight[:, -1] = torch.arange(len(run.tasks)) == chosen
    return model


# PEFT asks transformers for an attribute that is being renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_on_the_base_is_the_expert_with_gate_1(gated, pixels, tmp_path):
    content = export_run(gated, "peft", tmp_path / "out")
    assert content["adapters"] == list(TASKS)
    batch = gated.backbone.prepare(pixels, gated.base.checkpoint)
    config = json.loads((tmp_path / "out" / "task1" / "adapter_config.json").read_text())
    assert {config["r"], *config["rank_pattern"].values()} == {28, 20}
    plain = gated.base.model()(**batch).image_embeds
    adapted = PeftModel.from_pretrained(gated.base.model(), tmp_path / "out" / "task1", adapter_name="task1")
    for number, task in enumerate(TASKS):
        if number:
            adapted.load_adapter(tmp_path / "out" / task, adapter_name=task)
        adapted.set_adapter(task)
        with torch.no_grad():
            found, wanted = adapted(**batch).image_embeds, with_gates(gated, number)(**batch).image_embeds
        assert (wanted - plain).abs().max() > 0.1
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_it_says_what_no_adapter_holds(gated, tmp_path):
    content = export_run(gated, "peft", tmp_path / "out")
    left = content["not_in_the_adapters"]
    assert left[:2] == ["gates", "heads"]
    changed = {name for group in ("q_proj", "fc2") for name in left if f"{group}." in name}
    assert changed == set()
    assert "vision_model.embeddings.patch_embedding.weight" in left
    assert "vision_model.encoder.layers.0.layer_norm1.weight" not in left  # of vectors: gated


def test_methods_without_experts_are_refused_by_name(averaged, narrow, pixels, tmp_path):
    with pytest.raises(ExportError, match="method 'average' keeps no low-rank experts; use --to merged"):
        export_run(averaged, "peft", tmp_path / "out")
    run = merge(tmp_path / "run", narrow, pixels, "lora_wemoe", tasks=TASKS[:1], steps=1)
    with pytest.raises(ExportError, match="method 'lora_wemoe' merges other tensors too"):
        export_run(run, "peft", tmp_path / "out")
