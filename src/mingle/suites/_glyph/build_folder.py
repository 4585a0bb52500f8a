"""Where everything lies under the cache folder, and the rendered sources of a task."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mingle.suites._build.folder import WorkFolder

Array = npt.NDArray[Any]
Bag = dict[str, Array]
"""Sources of a task: ``rgba`` uint8 (N, 4, S, S), ``labels``, ``mono`` (only alpha counts), ``vendor`` and
``origin`` with ``vendor_names`` and ``origin_names``, and ``held``: True on the held-out side of the split.
"""


@dataclass(frozen=True)
class BuildFolder(WorkFolder):
    """The three glyph suites share downloads, sources, models and data."""

    area: str = "glyph"

    @property
    def npm(self) -> Path:
        """Folder of the npm packages."""
        return self.work / "npm"

    @property
    def icons(self) -> Path:
        """The package of icon sets."""
        return self.npm / "node_modules" / "@iconify" / "json"

    @property
    def debian(self) -> Path:
        """Downloaded Debian packages."""
        return self.work / "debian"

    def unpacked(self, package: str) -> Path:
        """Content of one Debian package."""
        return self.work / "root" / package

    def sources(self, task: str) -> Path:
        """Rendered sources of a task."""
        return self.work / "sources" / f"{task}.npz"


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
