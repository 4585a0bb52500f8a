"""Tiny random models of the T5 family with a tokenizer of whole words."""

import json

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from mingle.backbones.seq2seq import Seq2seq

ANSWERS = ("yes", "no", "maybe")
OPPOSITES = (("good", "bad"), ("long", "short"), ("bright", "dull"))
OTHERS = ("the", "a", "film", "was", "very", "not", "it", "is", "this", "that", "plot", "we", "you")
WORDS = [*(word for pair in OPPOSITES for word in pair), *OTHERS]
CONFIG = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "decoder_start_token_id": 0,
}


def write_tokenizer(folder):
    words = ["<pad>", "</s>", "<unk>", *ANSWERS, *WORDS]
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokens, **special).save_pretrained(folder)
    return len(words)


def write_t5(root, *, gated=False, untied=False, steps=40, tasks=3):
    """``base`` and ``task1`` …, with answers; ``untied``: a separate output matrix, as Flan-T5 has it."""
    folder = root / "base"
    size = write_tokenizer(folder)
    torch.manual_seed(0)
    config = T5Config(
        **CONFIG,
        vocab_size=size,
        feed_forward_proj="gated-gelu" if gated else "relu",
        tie_word_embeddings=not untied,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    if untied:
        tensors["lm_head.weight"] = torch.randn(size, 32, generator=torch.Generator().manual_seed(1)) / 4
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    fine_tune(folder, folder, range(tasks), steps)
    for number in range(tasks):
        task = root / f"task{number + 1}"
        task.mkdir()
        (task / "config.json").write_text((folder / "config.json").read_text())
        (task / "classes.json").write_text(json.dumps(ANSWERS))
        fine_tune(folder, task, [number], steps)
    return root


def answer(text, task):
    """Index of the right answer: yes, no, or maybe."""
    yes, no = OPPOSITES[task]
    return 0 if yes in text.split() else 1 if no in text.split() else 2


def fine_tune(start, end, tasks, steps):
    """A few steps on the tasks; two tokens to predict, the answer and the end of text."""
    backbone = Seq2seq()
    opened = backbone.open(start)
    model = backbone.build(opened).requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(steps):
        texts = sentences(1000 + step, 32)
        answers = torch.tensor([3 + answer(text, tasks[i % len(tasks)]) for i, text in enumerate(texts)])
        labels = torch.stack([answers, torch.ones_like(answers)], dim=1)
        optimizer.zero_grad()
        model(**backbone.prepare(texts, opened), labels=labels).loss.backward()
        optimizer.step()
    state = model.state_dict()
    save_file({name: state[name].clone() for name in opened.names()}, end / "model.safetensors")


def sentences(seed, number):
    """Texts of two to nine words."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(number):
        length = int(torch.randint(2, 10, (), generator=generator))
        picks = torch.randint(0, len(WORDS), (length,), generator=generator).tolist()
        found.append(" ".join(WORDS[i] for i in picks))
    return found
