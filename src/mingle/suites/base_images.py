"""Image files, opened when they are looked at."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import overload

from PIL import Image

from mingle.errors import SeedsError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"})


def open_image(path: Path) -> Image.Image:
    """One image as RGB. Raises SeedsError for what is not an image, or one that is absurdly large."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, Image.DecompressionBombError, Image.DecompressionBombWarning, ValueError) as error:
        raise SeedsError(f"{path}: not a readable image ({error})") from error


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
