"""Tokenizers, and texts as tensors."""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mingle.backbones.base_backbone import Backbone, Batch, Samples
from mingle.errors import CheckpointError, SeedsError, translated
from mingle.weights import Checkpoint


class TextReader(Backbone):
    """A family that reads texts, through the tokenizer (``tokenizer.json``) beside the base."""

    preset = "text"

    def check_family(self, checkpoint: Checkpoint, base: Checkpoint | None = None) -> None:
        """Also refuses a tokenizer beside a checkpoint that is not the base's. Raises CheckpointError."""
        super().check_family(checkpoint, base)
        if base is not None:
            check_tokenizer(checkpoint.folder, base.folder)


@lru_cache(maxsize=4)
def tokenizer(folder: str, *, left: bool = False) -> Any:  # noqa: ANN401 – a class of transformers
    """The tokenizer beside a model. Raises CheckpointError.

    ``left``: for prompts that are continued: padding goes before the text, a text that is too long loses its
    beginning, and without a padding token the end of text is one.
    """
    from transformers import PreTrainedTokenizerFast

    with translated(CheckpointError, f"{folder}: no readable tokenizer.json beside the model"):
        found: Any = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    if not isinstance(found.model_max_length, int | float):
        raise CheckpointError(f"{folder}: model_max_length: expected a number")
    if left and found.pad_token is None:
        found.pad_token = found.eos_token
    if found.pad_token is None:
        raise CheckpointError(f"{folder}: the tokenizer names no padding token")
    found.padding_side = found.truncation_side = "left" if left else "right"
    return found


def tokens(samples: Samples, base: Checkpoint, longest: int | None = None, *, left: bool = False) -> Batch:
    """Texts to ``input_ids`` and ``attention_mask`` (N, S), padded to the longest of them.

    ``longest``: where the model ends; the tokenizer may end earlier. ``left``: see `tokenizer`.
    Raises SeedsError.
    """
    if isinstance(samples, Tensor) or not all(isinstance(text, str) for text in samples):
        raise SeedsError("texts: expected a list of texts, found images; is it the right backbone?")
    words = tokenizer(str(base.folder), left=left)
    limit = None if longest is None else min(longest, words.model_max_length)
    with translated(CheckpointError, f"{base.folder}: the tokenizer cannot encode the texts"):
        encoded = words(list(samples), padding=True, truncation=True, max_length=limit, return_tensors="pt")
    return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}


def check_tokenizer(folder: Path, base: Path) -> None:
    """Refuses a ``tokenizer.json`` that makes other tokens than the base's. Raises CheckpointError.

    Compared are vocabulary and normaliser (lower case, say) where both folders hold one; in all else the
    base's is used, and versions of the library write it in different ways.
    """
    files = [folder / "tokenizer.json", base / "tokenizer.json"]
    if not all(file.exists() for file in files) or files[0].read_bytes() == files[1].read_bytes():
        return
    ours, theirs = (_description(file) for file in files)
    differing = [part for part in ours if ours[part] != theirs[part]]
    if differing:
        raise CheckpointError(
            f"{files[0]}: another tokenizer than the base's ({files[1]}): {' and '.join(differing)} differ; "
            "merge only checkpoints that were fine-tuned with the base's tokenizer"
        )


def _description(file: Path) -> dict[str, Any]:
    from tokenizers import Tokenizer

    with translated(CheckpointError, f"{file}: not a readable tokenizer"):
        found: Any = Tokenizer.from_file(str(file))
        return {"vocabulary": found.get_vocab(), "normaliser": json.loads(found.to_str())["normalizer"]}


def text_bytes(texts: Sequence[str]) -> Tensor:
    """UTF-8 bytes of N texts, padded with zeros to the longest: (N, bytes), uint8."""
    encoded = [text.encode() for text in texts]
    wide = max(map(len, encoded), default=0)
    return torch.tensor([[*text, *[0] * (wide - len(text))] for text in encoded], dtype=torch.uint8).reshape(
        len(encoded), wide
    )
