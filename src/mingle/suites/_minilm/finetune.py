"""Fine-tune the sentence encoder on one task: all weights, and a head that begins as a ridge regression.

Without dropout; everything drawn at a step depends on the seed and the step's number alone.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mingle.suites._build.classifier import accuracy, begin_head, features
from mingle.suites._build.draws import batch_of
from mingle.suites._build.folder import WorkFolder, write_json, write_whole
from mingle.suites._build.training import Schedule, train
from mingle.suites._minilm.recipe import LENGTH, TextTask
from mingle.suites._minilm.splits import class_names

WARM_UP, DECAY, SAVE_EVERY = 30, 0.01, 20
HEAD_TEXTS = 1024
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

    def batches(self, limit: int | None = None, size: int = 32) -> list[dict[str, Tensor]]:
        """The first texts, in order."""
        places = range(len(self.ids))[:limit]
        return [self.batch(torch.tensor(places[first : first + size])) for first in places[::size]]


def open_model(folder: Path, classes: tuple[str, ...]) -> Any:  # noqa: ANN401 – a model class of transformers
    """The base with a head for these classes, in float32 and without dropout."""
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # that the head is new is no news
    names = dict(enumerate(classes))
    model = AutoModelForSequenceClassification.from_pretrained(
        folder,
        local_files_only=True,
        dtype=torch.float32,
        id2label=names,
        label2id={name: label for label, name in names.items()},
    )
    return model.eval()


def loss_of(model: Any, texts: Texts, index: Tensor) -> Tensor:  # noqa: ANN401
    """Mean cross-entropy of the chosen texts."""
    return cross_entropy(model(**texts.batch(index)).logits, texts.labels[index])


def finetune(place: WorkFolder, task: TextTask) -> None:
    """One task from the base to ``place.model(task)``: model, configuration, tokenizer, accuracies."""
    from transformers import AutoTokenizer

    target, state_file = place.model(task.name), place.state(task.name)
    if target.exists():
        return
    tokenizer = AutoTokenizer.from_pretrained(place.base, local_files_only=True)
    texts = Texts.of(place.texts(task.name, "train"), tokenizer)
    test = Texts.of(place.texts(task.name, "test"), tokenizer)
    model = open_model(place.base, class_names(task, place))
    rows = features(model, model.classifier, texts.batches(HEAD_TEXTS))
    begin_head(model.classifier, rows, texts.labels[:HEAD_TEXTS])

    def loss(step: int) -> Tensor:
        return loss_of(model, texts, batch_of(step, task.batch, len(texts.ids), 22, task.number))

    train(model, loss, Schedule(task.steps, task.peak, WARM_UP, DECAY, SAVE_EVERY), state_file)
    scores = score(model, place, test)

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        for name in TOKENIZER:
            if (place.base / name).exists():
                shutil.copyfile(place.base / name, folder / name)
        write_json(folder / "accuracy.json", scores)

    write_whole(target, write)
    state_file.unlink()


def score(model: Any, place: WorkFolder, test: Texts) -> dict[str, float]:  # noqa: ANN401
    """Accuracy of the model, and of the base's features under the model's head."""
    batches = test.batches()
    own = accuracy(lambda **batch: model(**batch).logits, batches, test.labels)
    base = open_model(place.base, tuple(model.config.id2label.values()))
    base.classifier.load_state_dict(model.classifier.state_dict())
    return {"base": accuracy(lambda **batch: base(**batch).logits, batches, test.labels), "individual": own}
