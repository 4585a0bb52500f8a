"""Image files, opened when they are looked at."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import overload

from PIL import Image

from mingle.errors import SeedsError, translated

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"})

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""What a file may be, whatever it is called: Pillow would run Ghostscript on an EPS that is called .png."""


def open_image(path: Path) -> Image.Image:
    """One image as RGB. Raises SeedsError for what is not an image, or one that is absurdly large."""
    with translated(SeedsError, f"{path}: not a readable image"), warnings.catch_warnings():
        # Pillow refuses only what is twice as large as it warns of.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=FORMATS) as image:
            return image.convert("RGB")


def image_files(folder: Path) -> list[Path]:
    """Every image file below a folder, sorted; hidden files and folders are left out."""
    return sorted(
        f
        for f in folder.rglob("*")
        if f.suffix.lower() in IMAGE_SUFFIXES
        and f.is_file()
        and not any(part.startswith(".") for part in f.relative_to(folder).parts)
    )


class LazyImages(Sequence[Image.Image]):
    """Images that are opened one by one when they are asked for, so that a test set never is in memory whole.

    ``load(place)`` gives one image; ``places`` are the ones that belong to the sequence, in order.
    """

    def __init__(self, load: Callable[[int], Image.Image], places: Sequence[int]) -> None:
        self._load, self._places = load, places

    @classmethod
    def of_files(cls, files: Sequence[Path]) -> "LazyImages":
        """The images in these files."""
        return cls(lambda place: open_image(files[place]), range(len(files)))

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> "LazyImages": ...
    def __getitem__(self, index: int | slice) -> "Image.Image | LazyImages":
        if isinstance(index, slice):
            return LazyImages(self._load, self._places[index])
        return self._load(self._places[index])

    def take(self, index: Sequence[int]) -> "LazyImages":
        """The chosen images, still closed."""
        return LazyImages(self._load, [self._places[i] for i in index])
