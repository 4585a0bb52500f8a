"""A suite in one folder: the shipped ones, and a user's own."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, ConfigDict, Field, StringConstraints
from safetensors.torch import load_file
from torch import Tensor

from mingle.backbones import Samples
from mingle.config import Options
from mingle.errors import ConfigError, translated
from mingle.files import NAME_PATTERN, exists
from mingle.suites.base_samples import load_samples
from mingle.suites.base_suite import SUITES, Suite
from mingle.weights import read_json

SUPPORTED_SCHEMA = 1

# Base and tasks are folders in the suite's own, whoever wrote the description.
Name = Annotated[str, StringConstraints(pattern=f"^{NAME_PATTERN}$")]
Accuracy = Annotated[float, Field(ge=0, le=1)]


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("every task once")
    return names


class _Description(Options):
    """What is read of ``suite.json``; it may say more."""

    model_config = ConfigDict(extra="ignore", strict=True)

    name: str
    backbone: str
    base: Name
    tasks: Annotated[tuple[Name, ...], Field(strict=False, min_length=1), AfterValidator(_distinct)]
    base_accuracy: dict[str, Accuracy] = Field(default_factory=dict)
    individual_accuracy: dict[str, Accuracy] = Field(default_factory=dict)
    license: str | None = None
    licenses: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class FolderSuite(Suite):
    """A suite that lies in one folder.

    ``suite.json`` names base and tasks; ``base/`` and ``<task>/`` are model folders; every
    ``data/<task>.safetensors`` holds ``test_images`` uint8 (N, 3, H, W), ``test_labels`` int64 (N,) and
    ``seed_images`` uint8 (M, 3, H, W). ``data/<task>.train.safetensors`` may hold ``train_images`` and
    ``train_labels`` of the same forms. Tasks of texts have ``data/<task>.test.jsonl`` and ``.seeds.jsonl``
    instead, and may have ``.train.jsonl``: lines like ``{"text": "…", "label": 0}``, seeds without labels.
    """

    folder: Path

    @cached_property
    def description(self) -> dict[str, Any]:
        """``suite.json``. Raises ConfigError when it is missing, damaged or of a newer schema."""
        path = self.folder / "suite.json"
        value = read_json(path, ConfigError, "a readable suite description")
        if value.get("schema") != SUPPORTED_SCHEMA:
            raise ConfigError(
                f"{path}: expected schema {SUPPORTED_SCHEMA}, found {value.get('schema')!r}; update mingle"
            )
        missing = [key for key in ("name", "backbone", "base", "tasks") if key not in value]
        if missing:
            raise ConfigError(f"{path}: does not say {', '.join(map(repr, missing))}")
        _Description.parse(value, str(path))
        return value

    @property
    def name(self) -> str:
        """Name of the suite."""
        return str(self.description["name"])

    @property
    def backbone(self) -> str:
        """Name of the backbone its models belong to."""
        return str(self.description["backbone"])

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks in the suite's own order."""
        return tuple(self.description["tasks"])

    @property
    def base(self) -> Path:
        """Folder of the pretrained model."""
        return self.folder / str(self.description["base"])

    def checkpoint(self, task: str) -> Path:
        """Folder of a task's fine-tuned model. Raises UnknownNameError."""
        self.require(task)
        return self.folder / task

    def test(self, task: str) -> tuple[Samples, Tensor]:
        """Scored images uint8 (N, 3, H, W) or texts, and labels (N,)."""
        if self._is_text(task):
            return self._labelled_texts(task, "test")
        data = self._data(task, "test_images", "test_labels", "seed_images")
        return self._labelled(task, data["test_images"], data["test_labels"])

    def seeds(self, task: str) -> Samples:
        """Unlabelled images uint8 (M, 3, H, W) or texts that are in neither training nor test data."""
        if self._is_text(task):
            return load_samples(self._texts(task, "seeds")).samples
        return self._data(task, "test_images", "test_labels", "seed_images")["seed_images"]

    def train(self, task: str) -> tuple[Samples, Tensor]:
        """Training images or texts and labels (N,). Raises ConfigError where there are none."""
        if self._texts(task, "train").exists():
            return self._labelled_texts(task, "train")
        if not self._file(task, ".train").exists():
            super().train(task)
        data = self._data(task, "train_images", "train_labels", part=".train")
        return self._labelled(task, data["train_images"], data["train_labels"])

    def missing(self, tasks: Iterable[str]) -> list[str]:
        """Model folders and data files that are not there."""
        chosen = list(tasks)
        paths = [self.base, *(self.checkpoint(task) for task in chosen)]
        for task in chosen:
            texts = [self._texts(task, part) for part in ("test", "seeds")]
            paths += texts if self._is_text(task) else [self._file(task)]
        return [
            f"{path}: not found; put it back into the suite's folder" for path in paths if not path.exists()
        ]

    def _is_text(self, task: str) -> bool:
        return self._texts(task, "test").exists() or self._texts(task, "seeds").exists()

    def _texts(self, task: str, part: str) -> Path:
        return self.checkpoint(task).parent / "data" / f"{task}.{part}.jsonl"

    def _labelled_texts(self, task: str, part: str) -> tuple[Samples, Tensor]:
        found = load_samples(self._texts(task, part))
        if found.labels is None:
            raise ConfigError(f"{found.source}: expected a label in every line, found none")
        return found.samples, found.labels

    def _labelled(self, task: str, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if images.dim() != 4 or labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ConfigError(
                f"{self.folder}: data of task {task!r}: expected images (N, 3, H, W) and int64 labels (N,), "
                f"found {tuple(images.shape)} and {labels.dtype} {tuple(labels.shape)}"
            )
        return images, labels

    def _file(self, task: str, part: str = "") -> Path:
        return self.checkpoint(task).parent / "data" / f"{task}{part}.safetensors"

    def _data(self, task: str, *keys: str, part: str = "") -> dict[str, Tensor]:
        path = self._file(task, part)
        with translated(ConfigError, f"{path}: data of task {task!r} not readable"):
            data: dict[str, Tensor] = load_file(path)
        missing = [key for key in keys if key not in data]
        if missing:
            raise ConfigError(
                f"{path}: no tensor {', '.join(map(repr, missing))}; found {', '.join(sorted(data))}"
            )
        return data


def open_suite(source: str | Path) -> Suite:
    """A suite by name, or the folder of one's own (see FolderSuite). Raises UnknownNameError."""
    folder = Path(source)
    return FolderSuite(folder) if exists(folder / "suite.json") else SUITES.get(str(source))
