"""Tensors that a file stores under two names, one, or an older one."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mingle.backbones.causal_lm import CausalLm
from mingle.errors import CheckpointError
from mingle.methods import Base

from .writers import write_writer

BACKBONE = CausalLm()


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return write_writer(tmp_path_factory.mktemp("gpt2"), "gpt2", tasks=0)


@pytest.fixture(scope="module")
def base(gpt2):
    return Base(BACKBONE, BACKBONE.open(gpt2 / "base"))


def stored_as(folder, tmp_path, change):
    copy = shutil.copytree(folder, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors")
    return copy


def test_a_tied_weight_is_one_tensor(base):
    model = base.model()
    assert model.lm_head.weight is model.transformer.wte.weight
    assert "lm_head.weight" not in base.checkpoint.names()


@pytest.mark.parametrize("keep", [True, False])
def test_a_tied_weight_may_be_stored_under_either_name_or_both(gpt2, base, tmp_path, keep):
    def change(tensors):
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
        if not keep:
            del tensors["transformer.wte.weight"]

    opened = BACKBONE.open(stored_as(gpt2 / "base", tmp_path, change))
    assert opened.fingerprint == base.checkpoint.fingerprint


def test_two_values_of_a_tied_weight_are_refused(gpt2, tmp_path):
    copy = stored_as(
        gpt2 / "base", tmp_path, lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"] + 1})
    )
    with pytest.raises(
        CheckpointError, match=r"'lm_head\.weight' and 'transformer\.wte\.weight' are one tensor"
    ):
        BACKBONE.open(copy)


def test_untied_output_is_a_tensor_of_its_own(tmp_path):
    opened = BACKBONE.open(write_writer(tmp_path, "llama", tasks=0) / "base")
    model = BACKBONE.build(opened)
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert "lm_head.weight" in opened.names()


def test_files_of_older_versions_read_the_same(gpt2, base, tmp_path):
    """The hub's GPT-2 has no prefix, and stores masks that are computed."""

    def change(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
        tensors["h.0.attn.masked_bias"] = torch.tensor(-1e4)

    opened = BACKBONE.open(stored_as(gpt2 / "base", tmp_path, change))
    assert opened.fingerprint == base.checkpoint.fingerprint
