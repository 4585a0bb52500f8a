"""Fine-tune the sentence encoder on one task: all weights, without dropout.

Everything drawn at a step depends on the seed and the step's number alone.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mingle.suites._build import classifier
from mingle.suites._build.classifier import Finetuning, Labelled, open_classifier
from mingle.suites._build.draws import batch_of
from mingle.suites._build.folder import WorkFolder
from mingle.suites._build.model_folder import copy_model
from mingle.suites._build.training import Schedule
from mingle.suites._minilm.recipe import LENGTH, TextTask
from mingle.suites._minilm.splits import class_names

WARM_UP, DECAY, SAVE_EVERY = 30, 0.01, 20
HEAD_TEXTS, READ = 1024, 32
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
"""Files that a model folder may have beside weights and configuration."""


@dataclass(frozen=True)
class Texts:
    """Token ids of texts, and their labels (N,)."""

    ids: list[list[int]]
    labels: Tensor
    padding: int

    @classmethod
    def of(cls, file: Path, tokenizer: Any) -> "Texts":  # noqa: ANN401 – a tokenizer of transformers
        """Reads and tokenizes one part of a task."""
        rows = [json.loads(line) for line in file.read_text("utf-8").split("\n") if line]
        ids = tokenizer([row["text"] for row in rows], truncation=True, max_length=LENGTH)["input_ids"]
        return cls(ids, torch.tensor([row["label"] for row in rows]), tokenizer.pad_token_id)

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """Some texts, padded to the longest of them."""
        chosen = [torch.tensor(self.ids[i]) for i in index.tolist()]
        ids = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=self.padding)
        lengths = torch.tensor([len(one) for one in chosen])
        return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}

    def first(self, count: int | None = None) -> Labelled:
        """The first texts, or all, in order."""
        places = range(len(self.ids))[:count]
        batches = [self.batch(torch.tensor(places[start : start + READ])) for start in places[::READ]]
        return Labelled(batches, self.labels[:count])


def loss_of(model: Any, texts: Texts, index: Tensor) -> Tensor:  # noqa: ANN401
    """Mean cross-entropy of the chosen texts."""
    return cross_entropy(model(**texts.batch(index)).logits, texts.labels[index])


def finetune(place: WorkFolder, task: TextTask) -> None:
    """One task from the base to ``place.model(task)``: model, configuration, tokenizer, accuracies."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place.base, local_files_only=True)
    texts, test = (Texts.of(place.texts(task.name, part), tokenizer) for part in ("train", "test"))

    def loss(model: Any, step: int) -> Tensor:  # noqa: ANN401
        return loss_of(model, texts, batch_of(step, task.batch, len(texts.ids), 22, task.number))

    def write(model: Any, folder: Path) -> None:  # noqa: ANN401
        model.save_pretrained(folder)
        copy_model(place.base, folder, TOKENIZER)

    tuning = Finetuning(
        partial(open_classifier, "AutoModelForSequenceClassification", place.base, class_names(task, place)),
        ("bert.pooler", "classifier"),
        texts.first(HEAD_TEXTS),
        test.first(),
        loss,
        Schedule(task.steps, task.peak, WARM_UP, DECAY, SAVE_EVERY),
    )
    classifier.finetune(place, task.name, tuning, write)
