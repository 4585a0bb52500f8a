"""A tiny random CLIP with both towers and a tokenizer of letters and a few words."""

import json

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from ..conftest import CONFIG

LETTERS = "abcdefghijklmnopqrstuvwxyz."


def write_tokenizer(folder):
    """Byte-pair vocabulary: single letters, letters that end a word, two merges."""
    merges = [("c", "a"), ("ca", "t</w>")]
    pieces = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), *("".join(pair) for pair in merges)]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n"
    )
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    return vocabulary


def write_clip(folder, seed=0):
    """Config, weights, tokenizer and a preprocessor_config.json as the first CLIPs have it."""
    vocabulary = write_tokenizer(folder)
    text = {
        "vocab_size": len(vocabulary),
        "hidden_size": 20,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "bos_token_id": vocabulary["<|startoftext|>"],
        "eos_token_id": vocabulary["<|endoftext|>"],
        "pad_token_id": vocabulary["<|endoftext|>"],
    }
    vision = {key: value for key, value in CONFIG.items() if key != "projection_dim"}
    torch.manual_seed(seed)
    config = CLIPConfig(
        text_config=CLIPTextConfig(**text).to_dict(),
        vision_config=CLIPVisionConfig(**vision).to_dict(),
        projection_dim=CONFIG["projection_dim"],
    )
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for tensor in model.text_model.parameters():
            tensor.mul_(3)  # so that different texts give clearly different embeddings
    model.save_pretrained(folder)
    processor = {
        "crop_size": CONFIG["image_size"],
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": CONFIG["image_size"],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model
