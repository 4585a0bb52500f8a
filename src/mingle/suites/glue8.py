"""Eight GLUE tasks for Flan-T5-base, each as a prompt and an answer in words."""

import csv
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mingle.backbones import Head
from mingle.config import Options, read_yaml
from mingle.errors import ConfigError
from mingle.files import DATA_LIMIT, parse_json, read_text
from mingle.suites.base_recipe import RECIPES, HubData, HubModel, RecipeSuite

SCORES = tuple(f"{tenth / 10:.1f}" for tenth in range(51))
"""Answers of a similarity task: 0.0, 0.1, … 5.0."""


class GlueTask(Options):
    """``prompt`` names the columns of a row; ``answers`` in the order of the labels, or ``scores``."""

    prompt: str
    answers: tuple[str, ...] | Literal["scores"]
    test: str = "validation"


class GlueRecipes(Options):
    """``recipes/glue.yaml``."""

    base: HubModel
    expected: dict[str, float]
    tasks: dict[str, GlueTask]


@cache
def recipes() -> GlueRecipes:
    """The recipes of the tasks. Raises ConfigError."""
    path = RECIPES / "glue.yaml"
    return GlueRecipes.parse(read_yaml(path), str(path))


class GlueSuite(RecipeSuite):
    """GLUE for one text-to-text model."""

    @property
    def backbone(self) -> str:
        """Always ``seq2seq``."""
        return "seq2seq"

    @property
    def tasks(self) -> tuple[str, ...]:
        """The eight tasks."""
        return tuple(recipes().tasks)

    @property
    def expected(self) -> dict[str, float]:
        """ACC and BWT (%) that the paper reports, by method."""
        return recipes().expected

    @property
    def base_model(self) -> HubModel:
        """Flan-T5-base."""
        return recipes().base

    def task_model(self, task: str) -> HubModel:
        """The published fine-tuning."""
        self.require(task)
        return HubModel(id=f"tanganke/flan-t5-base_glue-{task}")

    def hub_data(self, task: str) -> HubData:
        """The task's configuration of the GLUE data set."""
        return HubData(id="nyu-mll/glue", config=task, test=self._recipe(task).test)

    def local_split(self, task: str, split: str) -> Path | None:
        """``glue/<task>/validation.jsonl`` or ``.tsv`` (``train`` for the training split)."""
        name = self._recipe(task).test if split == "test" else "train"
        if self.root is None:
            return None
        files = (self.root / "glue" / task / f"{name}{suffix}" for suffix in (".jsonl", ".tsv"))
        return next((file for file in files if file.exists()), None)

    def head(self, task: str) -> Head:
        """The answers of the task."""
        answers = self._recipe(task).answers
        return Head(SCORES if answers == "scores" else answers, {})

    def read(self, task: str, split: str) -> tuple[list[str], Tensor]:
        """Prompts and labels (N,), indices into the answers."""
        file = self.local_split(task, split)
        rows = self.rows(task, split) if file is None else read_rows(file)
        recipe = self._recipe(task)
        prompt = self._prompt(task)
        texts: list[str] = []
        labels: list[int] = []
        for number, row in enumerate(rows, start=1):
            try:
                texts.append(prompt.format(**row))
                score = recipe.answers == "scores"
                labels.append(SCORES.index(f"{float(row['label']):.1f}") if score else int(row["label"]))
            except (KeyError, ValueError, TypeError, IndexError) as error:
                raise ConfigError(
                    f"{file or self.hub_data(task).id}: row {number} of task {task!r} has no usable columns "
                    f"label and those of the prompt ({error!r}); found {', '.join(map(str, row))}"
                ) from error
        return texts, torch.tensor(labels, dtype=torch.int64)

    def _prompt(self, task: str) -> str:
        own = None if self.root is None else self.root / "glue" / task / "prompt.txt"
        return own.read_text("utf-8").strip() if own and own.exists() else self._recipe(task).prompt

    def _recipe(self, task: str) -> GlueTask:
        self.require(task)
        return recipes().tasks[task]


def read_rows(file: Path) -> Iterable[Mapping[str, Any]]:
    """Rows of a ``.jsonl`` or ``.tsv`` file by column. Raises ConfigError."""
    try:
        lines = read_text(file, DATA_LIMIT).split("\n")
        if file.suffix == ".tsv":
            return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
        rows = [parse_json(line) for line in lines if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"{file}: rows not readable ({error})") from error
    odd = next((i for i, row in enumerate(rows, start=1) if not isinstance(row, dict)), None)
    if odd is not None:
        raise ConfigError(f"{file}: expected one JSON object per line, found something else as row {odd}")
    return rows


PLUGIN = GlueSuite(__name__)
