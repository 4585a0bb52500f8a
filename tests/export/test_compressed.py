"""Runs with a budget, merged experts and half precision leave as the model that they are."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import mingle
from mingle.export import export_run
from mingle.layers import mixtures
from tests.conftest import write_checkpoint
from tests.export.conftest import STRONG
from tests.export.test_peft import with_gates

OPTIONS = STRONG | {"vectors": "dropped", "rank": 6}
KINDS = {
    "merged": {"stored": "bfloat16", "budget": 8, "projection": "none", "merge_cosine": 0.6},
    "without a rank": {"stored": "float16", "budget": 2},
}


@pytest.fixture(scope="module", params=KINDS)
def compressed(request, narrow, pixels, tmp_path_factory):
    """Two tasks, and twice the task vector of the first. Read only."""
    folder = tmp_path_factory.mktemp("compressed")
    start, tuned = (load_file(narrow / name / "model.safetensors") for name in ("base", "task1"))
    config = json.loads((narrow / "task1" / "config.json").read_text())
    write_checkpoint(folder / "again", {n: 2 * tuned[n] - tensor for n, tensor in start.items()}, config, 0)
    run = mingle.MergeRun.create(folder / "run", narrow / "base", options=OPTIONS | KINDS[request.param])
    for checkpoint in (narrow / "task1", narrow / "task2", folder / "again"):
        run.add(checkpoint, seeds=pixels)
    layers = [layer for _, layer in mixtures(run.model())]
    assert any(layer.sharing is not None for layer in layers) == (request.param == "merged")
    assert any(len(layer.task_of_rank.unique()) < 3 for layer in layers)
    return run


def test_hf_gives_the_same_bits(compressed, pixels, tmp_path):
    export_run(compressed, "hf", tmp_path / "out", options={"with_base": True})
    merged = mingle.from_pretrained(tmp_path / "out")
    for task in compressed.tasks:
        assert torch.equal(merged.predict(pixels, task)[0], compressed.predict(pixels, task)[0])
    assert merged.run.verify() == []


# PEFT asks transformers for an attribute that is being renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_is_what_its_gate_alone_adds(compressed, pixels, tmp_path):
    export_run(compressed, "peft", tmp_path / "out")
    batch = compressed.backbone.prepare(pixels, compressed.base.checkpoint)
    for number, task in enumerate(compressed.tasks):
        adapted = PeftModel.from_pretrained(compressed.base.model(), tmp_path / "out" / task)
        with torch.no_grad():
            found, wanted = (
                adapted(**batch).image_embeds,
                with_gates(compressed, number)(**batch).image_embeds,
            )
            plain = compressed.base.model()(**batch).image_embeds
        config = json.loads((tmp_path / "out" / task / "adapter_config.json").read_text())
        assert min([config["r"], *config["rank_pattern"].values()]) >= 1
        assert (wanted - plain).abs().max() > 1e-2
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
