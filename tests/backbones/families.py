"""A tiny random model of every family, with fine-tuned checkpoints of it. A new family adds one entry."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, CLIPVisionConfig, CLIPVisionModelWithProjection

from ..conftest import CONFIG, perturbed, write_checkpoint
from .plain_open_clip import write_open_clip
from .t5 import sentences, write_t5, write_tokenizer
from .writers import KINDS, write_writer

TASKS = ("task1", "task2")
CLASSES = 3
IMAGE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 8,
}
WINDOWS = {
    "image_size": 16,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [1, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
RELATIVE = {
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "pooler_hidden_size": 32,
    "pooler_hidden_act": "gelu",
}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 40}
IMAGES = {
    "vit": ("vit", IMAGE),
    "deit": ("deit", IMAGE),
    "dinov2": ("dinov2", IMAGE),
    "dinov2 swiglu": ("dinov2", IMAGE | {"use_swiglu_ffn": True}),
    "dinov2_with_registers": ("dinov2_with_registers", IMAGE),
    "beit": ("beit", IMAGE | {"use_relative_position_bias": True, "layer_scale_init_value": 0.1}),
    "swin": ("swin", WINDOWS),
    "swinv2": ("swinv2", WINDOWS),
}
TEXTS = {
    "bert": ("bert", TEXT),
    "roberta": ("roberta", TEXT),
    "xlm-roberta": ("xlm-roberta", TEXT),
    "deberta-v2": ("deberta-v2", TEXT | RELATIVE),
    "deberta-v2 shared": ("deberta-v2", TEXT | RELATIVE | {"share_att_key": True}),
    "distilbert": ("distilbert", DISTIL),
}


@dataclass(frozen=True)
class Family:
    """``write(root)`` makes ``base``, ``task1`` and ``task2``; ``samples(seed, number)`` what they read."""

    backbone: str
    write: Callable[[Path], object]
    samples: Callable[[int, int], object]


def images(seed, number):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (number, 3, 16, 16), generator=generator, dtype=torch.uint8)


def write_classifier(root, auto_class, model_type, values, scale=0.05):
    """Stored as save_pretrained stores it, under the names of the hub's files."""
    torch.manual_seed(0)
    labels = {i: f"class{i}" for i in range(CLASSES)}
    config = AutoConfig.for_model(model_type, **values, id2label=labels, architectures=[])
    getattr(transformers, auto_class).from_config(config).save_pretrained(root / "base")
    # A fresh model is almost zero: what is added to it as fine-tuning must not be most of it.
    tensors = perturbed(load_file(root / "base" / "model.safetensors"), 0, 0.1)
    save_file(tensors, root / "base" / "model.safetensors", metadata={"format": "pt"})
    for seed, task in enumerate(TASKS, start=1):
        (root / task).mkdir()
        (root / task / "config.json").write_text((root / "base" / "config.json").read_text())
        moved = perturbed(tensors, seed, scale)
        save_file(moved, root / task / "model.safetensors", metadata={"format": "pt"})


def write_text_classifier(root, model_type, values):
    size = write_tokenizer(root / "base")
    write_classifier(root, "AutoModelForSequenceClassification", model_type, values | {"vocab_size": size})


def write_clip(root):
    torch.manual_seed(0)
    CLIPVisionModelWithProjection(CLIPVisionConfig(**CONFIG)).save_pretrained(root / "base")
    tensors = load_file(root / "base" / "model.safetensors")
    config = json.loads((root / "base" / "config.json").read_text())
    for seed, task in enumerate(TASKS, start=1):
        write_checkpoint(root / task, perturbed(tensors, seed), config, seed)


def write_open_clips(root):
    write_open_clip(root / "base")
    tensors = load_file(root / "base" / "open_clip_model.safetensors")
    settings = (root / "base" / "open_clip_config.json").read_text()
    for seed, task in enumerate(TASKS, start=1):
        # Stored under another name: a model.safetensors of an OpenCLIP tower is read as well.
        write_checkpoint(root / task, perturbed(tensors, seed), {}, seed)
        (root / task / "config.json").unlink()
        (root / task / "open_clip_config.json").write_text(settings)


FAMILIES = {
    "open_clip": Family("open_clip", write_open_clips, images),
    "clip": Family("clip", write_clip, images),
    "t5": Family("seq2seq", lambda root: write_t5(root, steps=2, tasks=2), sentences),
}
for _name, (_type, _values) in IMAGES.items():
    FAMILIES[_name] = Family(
        "image_classifier",
        lambda root, kind=_type, values=_values: write_classifier(
            root, "AutoModelForImageClassification", kind, values
        ),
        images,
    )
for _name, (_type, _values) in TEXTS.items():
    FAMILIES[_name] = Family(
        "text_classifier",
        lambda root, kind=_type, values=_values: write_text_classifier(root, kind, values),
        sentences,
    )
for _name in KINDS:
    FAMILIES[_name] = Family("causal_lm", lambda root, kind=_name: write_writer(root, kind), sentences)
