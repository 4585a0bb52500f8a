"""One set of weights as a plain Hugging Face folder."""

import json

import pytest
import torch
import transformers

import mingle
from mingle.backbones.clip import Clip
from mingle.backbones.seq2seq import Seq2seq, write
from mingle.errors import ExportError
from mingle.export import export_run


@pytest.mark.parametrize("shard_mb", [5000, 0.03])
def test_transformers_reads_the_bits_of_the_merged_model(averaged, pixels, tmp_path, shard_mb):
    content = export_run(averaged, "merged", tmp_path / "out", options={"shard_mb": shard_mb})
    loaded = getattr(transformers, content["architecture"]).from_pretrained(tmp_path / "out").eval()
    batch = averaged.backbone.prepare(pixels, averaged.base.checkpoint)
    with torch.no_grad():
        assert torch.equal(loaded(**batch).image_embeds, averaged.model()(**batch).image_embeds)
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) == (1 if shard_mb == 5000 else 3)
    if len(shards) > 1:
        # The largest tensor alone is below the limit here, so that every shard is.
        assert max(shard.stat().st_size for shard in shards) < 0.03e6 + 4000
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(4 * p.numel() for p in loaded.parameters())


def test_it_is_a_checkpoint_like_any_other_with_its_heads_beside(averaged, tmp_path):
    export_run(averaged, "merged", tmp_path / "out")
    opened = Clip().open(tmp_path / "out")
    assert torch.equal(
        opened.tensor("visual_projection.weight"), averaged.model().get_parameter("visual_projection.weight")
    )
    for step in averaged.state.steps:
        head = Clip().head(opened, tmp_path / "out" / "heads" / f"{step.task}.safetensors")
        assert head.classes == step.head.classes
        assert all(torch.equal(head.tensors[name], tensor) for name, tensor in step.head.tensors.items())


def test_a_model_of_text_brings_tokenizer_and_answers(answering, tmp_path):
    out = tmp_path / "out"
    export_run(answering, "merged", out)
    loaded = transformers.T5ForConditionalGeneration.from_pretrained(out).eval()
    batch = answering.backbone.prepare(["the film was good", "a plot"], Seq2seq().open(out))
    assert torch.equal(write(loaded, batch), write(answering.model(), batch))
    assert json.loads((out / "heads" / "task1.json").read_text()) == list(
        answering.state.steps[0].head.classes
    )
    words = transformers.AutoTokenizer.from_pretrained(out)
    assert torch.equal(
        words(["the film was good", "a plot"], padding=True, return_tensors="pt").input_ids,
        batch["input_ids"],
    )


def test_methods_without_one_set_of_weights_are_refused_by_name(narrow, tmp_path):
    run = mingle.MergeRun.create(tmp_path / "run", narrow / "base", method="individual")
    with pytest.raises(ExportError, match="nothing merged yet"):
        export_run(run, "merged", tmp_path / "out")
    run.add(narrow / "task1")
    with pytest.raises(ExportError, match="method 'individual' has one model per task"):
        export_run(run, "merged", tmp_path / "out")
