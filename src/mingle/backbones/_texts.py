"""Tokenizers, and texts as tensors."""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mingle.errors import CheckpointError


@lru_cache(maxsize=4)
def tokenizer(folder: str) -> Any:  # noqa: ANN401 – a class of transformers
    """The tokenizer beside a model. Raises CheckpointError."""
    from transformers import PreTrainedTokenizerFast

    try:
        found: Any = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{folder}: no readable tokenizer.json beside the model ({error})") from error
    if found.pad_token is None:
        raise CheckpointError(f"{folder}: the tokenizer names no padding token")
    found.padding_side = "right"
    return found


def text_bytes(texts: Sequence[str]) -> Tensor:
    """UTF-8 bytes of N texts, padded with zeros to the longest: (N, bytes), uint8."""
    encoded = [text.encode() for text in texts]
    wide = max(map(len, encoded), default=0)
    return torch.tensor([[*text, *[0] * (wide - len(text))] for text in encoded], dtype=torch.uint8).reshape(
        len(encoded), wide
    )
