"""Tiny random models that continue prompts, with a tokenizer of whole words."""

import json

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from mingle.backbones.causal_lm import CausalLm

from .t5 import ANSWERS, WORDS, answer, sentences

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
KINDS = {
    "llama": SIZES | {"max_position_embeddings": 64},
    "qwen2": SIZES | {"max_position_embeddings": 64, "tie_word_embeddings": True},
    "qwen3": SIZES | {"max_position_embeddings": 64},
    "gpt2": GPT2,
}
TOKENS = ["</s>", "<unk>", *ANSWERS, *WORDS]


def write_words(folder):
    """No padding token, and none of its own at either end, as GPT-2's."""
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(TOKENS)}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokens, eos_token="</s>", unk_token="<unk>", model_max_length=10**6
    ).save_pretrained(folder)


def write_writer(root, kind, steps=0, tasks=2):
    """``base``, and ``task1`` … trained for some steps to answer one of the questions each, the base all."""
    folder = root / "base"
    write_words(folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **KINDS[kind], vocab_size=len(TOKENS), eos_token_id=0, bos_token_id=0)
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        # A fresh model is almost zero, its biases and norms exactly zero or one.
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    if steps:
        _fine_tune(folder, folder, range(tasks), steps)
    for number in range(tasks):
        task = root / f"task{number + 1}"
        task.mkdir()
        (task / "config.json").write_text((folder / "config.json").read_text())
        (task / "classes.json").write_text(json.dumps(ANSWERS))
        _fine_tune(folder, task, [number], steps)
    return root


def _fine_tune(start, end, tasks, steps):
    """Two tokens to predict, the answer and the end of text; without steps, noise is added."""
    backbone = CausalLm()
    opened = backbone.open(start)
    model = backbone.build(opened).requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(steps):
        texts = sentences(1000 + step, 32)
        answers = [answer(text, tasks[i % len(tasks)]) for i, text in enumerate(texts)]
        written = torch.tensor([[2 + index, 0] for index in answers])
        batch = backbone.prepare(texts, opened)
        batch = backbone.dictation(model, batch, written, torch.ones_like(written))
        optimizer.zero_grad()
        logits = backbone.logits(model, batch, None)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), written.flatten()).backward()
        optimizer.step()
    state = model.state_dict()
    generator = torch.Generator().manual_seed(2 + tasks[0])
    noise = 0.0 if steps else 0.05
    tensors = {
        name: state[name] + noise * torch.randn(state[name].shape, generator=generator)
        for name in opened.names()
    }
    save_file(tensors, end / "model.safetensors", metadata={"format": "pt"})
