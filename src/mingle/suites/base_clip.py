"""The image suites of CLIP: zero-shot heads of the base, published fine-tunings, pictures in folders."""

from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from mingle.backbones import Head, read_names
from mingle.backbones.clip import Clip
from mingle.config import Options, read_yaml
from mingle.errors import ConfigError
from mingle.suites.base_images import LazyImages, image_files
from mingle.suites.base_recipe import RECIPES, HubData, HubModel, RecipeSuite
from mingle.suites.base_samples import words

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")


class ClipTask(Options):
    """``checkpoint: published`` is tanganke/clip-vit-<tower>_<task>; None: none is known on the Hub."""

    checkpoint: str | None = "published"
    data: HubData | None
    classes: tuple[str, ...] | None
    templates: tuple[str, ...]


class ClipRecipes(Options):
    """``recipes/clip.yaml``."""

    bases: dict[str, HubModel]
    groups: dict[str, tuple[str, ...]]
    expected: dict[str, dict[str, dict[str, float]]]
    tasks: dict[str, ClipTask]


@cache
def recipes() -> ClipRecipes:
    """The recipes of all CLIP suites. Raises ConfigError."""
    path = RECIPES / "clip.yaml"
    return ClipRecipes.parse(read_yaml(path), str(path))


class ClipSuite(RecipeSuite):
    """A group of tasks for one CLIP."""

    def __init__(self, group: str, tower: str, module: str) -> None:
        super().__init__(module)
        self.group, self.tower = group, tower

    @property
    def backbone(self) -> str:
        """Always ``clip``."""
        return "clip"

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of the group, in the paper's order."""
        return recipes().groups[self.group]

    @property
    def expected(self) -> dict[str, float]:
        """ACC and BWT (%) that the paper reports, by method."""
        return recipes().expected[self.group].get(self.tower, {})

    @property
    def base_model(self) -> HubModel:
        """The whole CLIP."""
        return recipes().bases[self.tower]

    def task_model(self, task: str) -> HubModel | None:
        """The published fine-tuned vision tower."""
        stored = self._recipe(task).checkpoint
        return HubModel(id=f"tanganke/clip-vit-{self.tower}_{task}") if stored == "published" else None

    def hub_data(self, task: str) -> HubData | None:
        """The task's data set."""
        return self._recipe(task).data

    def local_split(self, task: str, split: str) -> Path | None:
        """``<task>/<split>`` in the local folder."""
        self.require(task)
        folder = None if self.root is None else self.root / task / split
        return folder if folder is not None and folder.is_dir() else None

    def head(self, task: str) -> Head:
        """Class embeddings of the base's text tower for the task's class names and prompts."""
        templates = self._own(task, "templates.txt") or self._recipe(task).templates
        return _head(str(self.base), self.classes(task), templates)

    def classes(self, task: str) -> tuple[str, ...]:
        """Class names: ``classes.txt`` of the local folder, the recipe's, or those of the data themselves."""
        named = self._own(task, "classes.txt") or self._recipe(task).classes
        return named or tuple(name.replace("_", " ") for name in self._pictures(task, "test")[2])

    def read(self, task: str, split: str) -> tuple[LazyImages, Tensor]:
        """Pictures, opened when looked at, and labels (N,)."""
        images, labels, names = self._pictures(task, split)
        where = f"data of {task!r} ({split})"
        ordered = self.local_split(task, split) is None
        places = torch.tensor(_places(names, self.classes(task), ordered, where), dtype=torch.int64)
        return images, places[labels]

    def _pictures(self, task: str, split: str) -> tuple[LazyImages, Tensor, tuple[str, ...]]:
        """Pictures, labels (N,) as the source counts, and the source's names of its labels."""
        folder = self.local_split(task, split)
        if folder is not None:
            files = image_files(folder)
            loose = [file for file in files if file.parent.parent != folder]
            if not files or loose:
                found = f"found {loose[0]}" if loose else "found no picture"
                raise ConfigError(f"{folder}: expected one folder of pictures per class, {found}")
            names = tuple(sorted({file.parent.name for file in files}))
            labels = torch.tensor([names.index(file.parent.name) for file in files])
            return LazyImages.of_files(files), labels, names
        rows = self.rows(task, split)
        image, label = (_column(rows.column_names, known) for known in (IMAGE_COLUMNS, LABEL_COLUMNS))
        labels = torch.tensor(list(rows[label]), dtype=torch.int64)
        named = getattr(rows.features[label], "names", None) or map(str, range(int(labels.max()) + 1))
        return LazyImages(lambda i: rows[i][image].convert("RGB"), range(len(rows))), labels, tuple(named)

    def _recipe(self, task: str) -> ClipTask:
        self.require(task)
        return recipes().tasks[task]

    def _own(self, task: str, file: str) -> tuple[str, ...] | None:
        path = None if self.root is None else self.root / task / file
        return read_names(path) if path is not None and path.exists() else None


@lru_cache(maxsize=64)
def _head(base: str, classes: tuple[str, ...], templates: tuple[str, ...]) -> Head:
    backbone = Clip()
    return backbone.zero_shot_head(backbone.open(base), classes, templates)


def _places(names: Sequence[str], classes: Sequence[str], ordered: bool, where: str) -> list[int]:
    """Which class each of a source's labels is: by name, by number, or by place.

    By place only where the source states an order (``ordered``) and no name it shares contradicts it.
    """
    known = {words(name): i for i, name in enumerate(classes)}
    if all(words(name) in known for name in names):
        return [known[words(name)] for name in names]
    if all(name.isdigit() and int(name) < len(classes) for name in names):
        return [int(name) for name in names]
    agree = all(known.get(words(name), i) == i for i, name in enumerate(names))
    if ordered and len(names) == len(classes) and agree:
        return list(range(len(names)))
    unknown = [name for name in names if words(name) not in known]
    raise ConfigError(
        f"{where}: {len(unknown)} of {len(names)} class names are none of the suite's {len(classes)}: "
        f"{', '.join(map(repr, unknown[:5]))}; rename them, or list all names in classes.txt"
    )


def _column(found: Sequence[str], known: Sequence[str]) -> str:
    for name in known:
        if name in found:
            return name
    raise ConfigError(f"data set: expected a column {' or '.join(known)}, found {', '.join(found)}")
