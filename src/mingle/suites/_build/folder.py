"""Where everything of a build lies under the cache folder, and writing that a kill cannot spoil."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from mingle.errors import ConfigError


def cache_folder() -> Path:
    """``$MINGLE_CACHE``, or else ``~/.cache/mingle``."""
    chosen = os.environ.get("MINGLE_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "mingle"


@dataclass(frozen=True)
class WorkFolder:
    """Paths under one cache folder: ``area`` for all that is made on the way, ``suites`` for what is finished.

    Suites that share an area share its data; ``models`` names the folder of one kind of fine-tuning.
    """

    root: Path
    area: str
    models: str = "models"

    @property
    def work(self) -> Path:
        """Whatever is made on the way to a suite."""
        return self.root / self.area

    @property
    def packages(self) -> Path:
        """Downloaded packages."""
        return self.root / "packages"

    @property
    def base(self) -> Path:
        """Folder of the pretrained model."""
        return self.work / "base"

    def model(self, task: str) -> Path:
        """Folder of a task's fine-tuned model and head."""
        return self.work / self.models / task

    def state(self, task: str) -> Path:
        """What an interrupted fine-tuning continues from."""
        return self.work / self.models / f"{task}-state.safetensors"

    def data(self, task: str) -> Path:
        """Test images, their labels, and seed images of a task."""
        return self.work / "data" / f"{task}.safetensors"

    def train(self, task: str) -> Path:
        """Labelled training images of a task."""
        return self.work / "data" / f"{task}.train.safetensors"

    def texts(self, task: str, part: str) -> Path:
        """Texts of a task: the part ``test``, ``seeds`` or ``train``, one JSON object per line."""
        return self.work / "data" / f"{task}.{part}.jsonl"

    def classes(self, task: str) -> Path:
        """Names of a task's classes in order, with the number of texts of each."""
        return self.work / "data" / f"{task}.classes.json"

    def suite(self, name: str) -> Path:
        """Folder of a finished suite."""
        return self.root / "suites" / name

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One build at a time. Raises ConfigError when another process builds there."""
        self.work.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.work / "build.lock", timeout=0):
                yield
        except Timeout as error:
            raise ConfigError(f"{self.work}: another process is building there; wait for it") from error


def write_whole(target: Path, write: Callable[[Path], None]) -> None:
    """Has ``write`` fill a new folder that becomes ``target`` only when it is complete."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)
