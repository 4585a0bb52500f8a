"""A suite: a base, checkpoints fine-tuned from it, and data to adapt and to score them on."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mingle.errors import ConfigError, UnknownNameError
from mingle.registry import Registry

SUPPORTED_SCHEMA = 1


@dataclass(frozen=True)
class FolderSuite:
    """A suite that lies in one folder.

    ``suite.json`` names base and tasks; ``base/`` and ``<task>/`` are model folders; every
    ``data/<task>.safetensors`` holds ``test_images`` uint8 (N, 3, H, W), ``test_labels`` int64 (N,) and
    ``seed_images`` uint8 (M, 3, H, W).
    """

    folder: Path

    @cached_property
    def description(self) -> dict[str, Any]:
        """``suite.json``. Raises ConfigError when it is missing, damaged or of a newer schema."""
        path = self.folder / "suite.json"
        try:
            value: object = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: not a readable suite description ({error})") from error
        if not isinstance(value, dict):
            raise ConfigError(f"{path}: expected a JSON object, found {type(value).__name__}")
        if value.get("schema") != SUPPORTED_SCHEMA:
            raise ConfigError(
                f"{path}: expected schema {SUPPORTED_SCHEMA}, found {value.get('schema')!r}; update mingle"
            )
        missing = [key for key in ("name", "backbone", "base", "tasks") if key not in value]
        if missing:
            raise ConfigError(f"{path}: does not say {', '.join(map(repr, missing))}")
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
        if task not in self.tasks:
            raise UnknownNameError(f"task of suite {self.name!r}", task, self.tasks)
        return self.folder / task

    def test(self, task: str) -> tuple[Tensor, Tensor]:
        """Scored images uint8 (N, 3, H, W) and labels (N,)."""
        data = self._data(task)
        return data["test_images"], data["test_labels"]

    def seeds(self, task: str) -> Tensor:
        """Unlabelled images uint8 (M, 3, H, W) that are in neither training nor test data."""
        return self._data(task)["seed_images"]

    def _data(self, task: str) -> dict[str, Tensor]:
        path = self.checkpoint(task).parent / "data" / f"{task}.safetensors"
        try:
            data: dict[str, Tensor] = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{path}: data of task {task!r} not readable ({error})") from error
        missing = [key for key in ("test_images", "test_labels", "seed_images") if key not in data]
        if missing:
            raise ConfigError(
                f"{path}: no tensor {', '.join(map(repr, missing))}; found {', '.join(sorted(data))}"
            )
        return data


SUITES: Registry[FolderSuite] = Registry("suite", "mingle.suites")


def open_suite(source: str | Path) -> FolderSuite:
    """A suite by name, or the folder of one's own (see FolderSuite). Raises UnknownNameError."""
    folder = Path(source)
    return FolderSuite(folder) if (folder / "suite.json").exists() else SUITES.get(str(source))


def suite_part(source: str) -> tuple[FolderSuite, str] | None:
    """Splits ``suite:part``; None when ``source`` is an ordinary path or hub id. Raises UnknownNameError."""
    suite, colon, part = source.partition(":")
    if (
        not colon
        or len(suite) < 2
        or not suite.isidentifier()
        or part.startswith("//")
        or Path(source).exists()
    ):
        return None
    return SUITES.get(suite), part


def locate(source: str | Path) -> str | Path:
    """The model folder behind ``suite:base`` or ``suite:task``; any other source unchanged."""
    found = suite_part(str(source))
    if found is None:
        return source
    suite, part = found
    return suite.base if part == "base" else suite.checkpoint(part)
