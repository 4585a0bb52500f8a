"""Suites that are recipes: ids of models and data sets on the Hub, or local copies of the same content.

The environment variable ``MINGLE_DATA`` (``mingle --data``) names a folder of local copies::

    models/<owner>__<name>/        what `hf download <owner>/<name> --local-dir …` writes
    <task>/test/<class>/*.png      pictures; <task>/train/… the same
    glue/<task>/validation.jsonl   rows of a text task (or .tsv); train.jsonl the same
    <task>/classes.txt             replaces the class names of the recipe; templates.txt its prompts

What is not there is looked up in the cache of the Hub's client. Nothing is fetched: `missing` says how.
"""

import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from mingle.backbones import Samples
from mingle.config import Options
from mingle.errors import ConfigError, translated
from mingle.suites.base_suite import Suite

RECIPES = Path(__file__).parent / "recipes"
DATA_VARIABLE = "MINGLE_DATA"
INSTALL = "pip install 'mingle-merge[hub-data]'"


class HubModel(Options):
    """A model on the Hub; without a revision whatever is there today."""

    id: str
    revision: str | None = None


class HubData(Options):
    """A data set on the Hub, and the names of its splits there."""

    id: str
    config: str | None = None
    revision: str | None = None
    test: str = "test"
    train: str = "train"


class RecipeSuite(Suite):
    """What all recipes share: where models and data are, and what is missing."""

    def __init__(self, module: str) -> None:
        self._name = module.rpartition(".")[2]

    @property
    def name(self) -> str:
        """Name of the suite: its file's stem."""
        return self._name

    @property
    def root(self) -> Path | None:
        """The folder of local copies, if one is named."""
        named = os.environ.get(DATA_VARIABLE)
        return Path(named).expanduser() if named else None

    @property
    @abstractmethod
    def base_model(self) -> HubModel:
        """The pretrained model."""

    @abstractmethod
    def task_model(self, task: str) -> HubModel | None:
        """A task's fine-tuned model; None where none is known on the Hub. Raises UnknownNameError."""

    @abstractmethod
    def hub_data(self, task: str) -> HubData | None:
        """A task's data set; None where none is known on the Hub. Raises UnknownNameError."""

    @abstractmethod
    def local_split(self, task: str, split: str) -> Path | None:
        """The local copy of a split (``test`` or ``train``); None where there is none."""

    @abstractmethod
    def read(self, task: str, split: str) -> tuple[Samples, Tensor]:
        """The samples and labels of a split. Raises ConfigError."""

    @property
    def base(self) -> str | Path:
        """The pretrained model: a local copy or a hub id."""
        return self._place(self.base_model)

    def checkpoint(self, task: str) -> str | Path:
        """A task's fine-tuned model: a local copy or a hub id. Raises ConfigError where neither is known."""
        model = self.task_model(task)
        if model is not None:
            return self._place(model)
        folder = self._own_model(task)
        if folder is None or not folder.exists():
            raise ConfigError(next(self._missing_model(None, task)))
        return folder

    def test(self, task: str) -> tuple[Samples, Tensor]:
        """Scored samples and labels (N,)."""
        return self.read(task, "test")

    def seeds(self, task: str) -> Samples:
        """Samples of the training split, without their labels."""
        return self.read(task, "train")[0]

    def train(self, task: str) -> tuple[Samples, Tensor]:
        """Samples and labels (N,) of the training split."""
        return self.read(task, "train")

    def missing(self, tasks: Iterable[str]) -> list[str]:
        """Models and splits that are neither in the local folder nor in the cache of the Hub's client."""
        lines = list(self._missing_model(self.base_model, "base"))
        cached_data = False
        for task in tasks:
            lines += self._missing_model(self.task_model(task), task)
            data = self.hub_data(task)
            splits = [split for split in ("test", "train") if self.local_split(task, split) is None]
            if not splits:
                continue
            if data is not None and hub_folder(data.id, data.revision, "dataset") is not None:
                cached_data = True
                continue
            how = f"`hf download --repo-type dataset {data.id}`, or " if data else ""
            lines.append(
                f"data of {task!r} ({' and '.join(splits)}): {how}a local copy in {self._where(task)} "
                "(see docs/suites.md)"
            )
        if cached_data and find_spec("datasets") is None:
            lines.append(f"package datasets, to read data from the Hub: {INSTALL}")
        return lines

    def rows(self, task: str, split: str) -> Any:  # noqa: ANN401 – a data set of the package datasets
        """A split of the task's data set in the Hub's cache. Raises ConfigError."""
        data = self.hub_data(task)
        folder = None if data is None else hub_folder(data.id, data.revision, "dataset")
        if data is None or folder is None:
            raise ConfigError(f"suite {self.name!r}: {'; '.join(self.missing([task]))}")
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise ConfigError(f"data of {task!r}: reading data from the Hub needs {INSTALL}") from error
        with translated(ConfigError, f"{data.id}: split {split!r} not readable"):
            return load_dataset(str(folder), data.config, split=data.test if split == "test" else data.train)

    def _place(self, model: HubModel) -> str | Path:
        local = self._local_model(model)
        if local is not None:
            return local
        cached = hub_folder(model.id, model.revision, "model")
        return model.id if cached is None else cached

    def _local_model(self, model: HubModel) -> Path | None:
        folder = None if self.root is None else self.root / "models" / model.id.replace("/", "__")
        return folder if folder is not None and folder.exists() else None

    def _own_model(self, task: str) -> Path | None:
        return None if self.root is None else self.root / "models" / task

    def _missing_model(self, model: HubModel | None, what: str) -> Iterator[str]:
        if model is None:
            folder = self._own_model(what)
            if folder is None or not folder.exists():
                where = self._where("models", what)
                yield f"model of {what!r}: none is known on the Hub; put one into {where}"
            return
        local = self._local_model(model)
        folder = hub_folder(model.id, model.revision, "model") if local is None else local
        if folder is None:
            place = self._where("models", model.id.replace("/", "__"))
            yield f"model {model.id} ({what}): `hf download {model.id}`, or a copy in {place}"
        elif not any(folder.glob("*.safetensors")):
            yield (
                f"model {model.id} ({what}): {folder} holds no .safetensors; open it with transformers and "
                f"save it with save_pretrained into {self._where('models', model.id.replace('/', '__'))}"
            )

    def _where(self, *parts: str) -> str:
        return "/".join([f"${DATA_VARIABLE}" if self.root is None else str(self.root), *parts])


def hub_folder(hub_id: str, revision: str | None, kind: str) -> Path | None:
    """The snapshot of a model or data set in the cache of the Hub's client; None where there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, revision=revision, repo_type=kind, local_files_only=True))
    except (LocalEntryNotFoundError, OSError):
        return None
