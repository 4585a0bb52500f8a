"""Where everything lies under the cache folder, and the rendered sources of a task."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Bag = dict[str, Array]
"""Sources of a task: ``rgba`` uint8 (N, 4, S, S), ``labels``, ``mono`` (only alpha counts), ``vendor`` and
``origin`` with ``vendor_names`` and ``origin_names``, and ``held``: True on the held-out side of the split.
"""


def cache_folder() -> Path:
    """``$MINGLE_CACHE``, or else ``~/.cache/mingle``."""
    chosen = os.environ.get("MINGLE_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "mingle"


@dataclass(frozen=True)
class BuildFolder:
    """Paths under one cache folder. The three suites share downloads, sources, models and data."""

    root: Path

    @property
    def glyph(self) -> Path:
        """Whatever is made on the way to a suite."""
        return self.root / "glyph"

    @property
    def npm(self) -> Path:
        """Folder of the npm packages."""
        return self.glyph / "npm"

    @property
    def icons(self) -> Path:
        """The package of icon sets."""
        return self.npm / "node_modules" / "@iconify" / "json"

    @property
    def debian(self) -> Path:
        """Downloaded Debian packages."""
        return self.glyph / "debian"

    def unpacked(self, package: str) -> Path:
        """Content of one Debian package."""
        return self.glyph / "root" / package

    def sources(self, task: str) -> Path:
        """Rendered sources of a task."""
        return self.glyph / "sources" / f"{task}.npz"

    def model(self, task: str) -> Path:
        """Folder of a task's fine-tuned model and head."""
        return self.glyph / "models" / task

    def state(self, task: str) -> Path:
        """What an interrupted fine-tuning continues from."""
        return self.glyph / "models" / f"{task}-state.safetensors"

    def data(self, task: str) -> Path:
        """Test images, their labels, and seed images of a task."""
        return self.glyph / "data" / f"{task}.safetensors"

    def train(self, task: str) -> Path:
        """Labelled training images of a task."""
        return self.glyph / "data" / f"{task}.train.safetensors"

    def suite(self, name: str) -> Path:
        """Folder of a finished suite."""
        return self.root / "suites" / name


def save_bag(path: Path, bag: Bag) -> None:
    """Writes arrays so that a kill in the middle leaves no half-written file under the final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, allow_pickle=False, **bag)
    partial.replace(path)


def load_bag(path: Path) -> Bag:
    """Reads what ``save_bag`` wrote."""
    with np.load(path, allow_pickle=False) as data:
        return {name: data[name] for name in data.files}
