"""Samples from image folders, array files, suites or memory, with a hash for each."""

import hashlib
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mingle.backbones import Samples
from mingle.errors import SeedsError
from mingle.suites.base_suite import FolderSuite, suite_part

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"})
IMAGE_KEYS = ("images", "seed_images", "pixel_values", "x")
LABEL_KEYS = ("labels", "y")
DAMAGED_ARCHIVE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)


@dataclass(frozen=True)
class RawSamples:
    """Samples as they came, with labels (N,) or class names where the source has them."""

    samples: Samples
    labels: Tensor | None = None
    label_names: tuple[str, ...] | None = None
    source: str = "memory"

    def ids(self) -> tuple[str, ...]:
        """A short content hash of every sample: the same image is recognised wherever it comes from."""
        return tuple(hashlib.sha256(_raw(sample)).hexdigest()[:16] for sample in self.samples)


def suite_samples(suite: FolderSuite, task: str, *, scored: bool = False) -> RawSamples:
    """A task's unlabelled seeds or, ``scored``, its labelled test images (the paper's protocol)."""
    images, labels = suite.test(task) if scored else (suite.seeds(task), None)
    return RawSamples(
        images, labels, source=f"{suite.name}:{task} ({'test images' if scored else 'seed pool'})"
    )


def load_samples(source: str | Path | Samples | RawSamples, *, scored: bool = False) -> RawSamples:
    """Reads ``suite:task``, a folder of images, a ``.safetensors`` or ``.npz`` file, or takes what is given.

    ``scored`` takes a suite's labelled test images instead of its unlabelled seeds (the paper's protocol).
    A folder whose images lie in one subfolder per class brings class names; array files may bring labels.
    Raises SeedsError.
    """
    if isinstance(source, RawSamples):
        return _not_empty(source)
    if not isinstance(source, str | Path):
        samples = source if isinstance(source, Tensor) else list(source)
        return _not_empty(RawSamples(samples))
    part = suite_part(str(source))
    if part is not None:
        return suite_samples(*part, scored=scored)
    path = Path(source).expanduser()
    if path.is_dir():
        return _not_empty(_image_folder(path))
    if not path.exists():
        raise SeedsError(
            f"{source}: no such file or folder; expected images, .safetensors, .npz or suite:task"
        )
    if path.suffix in (".safetensors", ".npz"):
        return _not_empty(_array_file(path))
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return RawSamples([open_image(path)], source=str(path))
    raise SeedsError(
        f"{path}: expected a folder of images, .safetensors or .npz, found {path.suffix or 'no suffix'}"
    )


def open_image(path: Path) -> Image.Image:
    """One image as RGB. Raises SeedsError for what is not an image, or one that is absurdly large."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, Image.DecompressionBombError, Image.DecompressionBombWarning, ValueError) as error:
        raise SeedsError(f"{path}: not a readable image ({error})") from error


def _image_folder(folder: Path) -> RawSamples:
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file())
    nested = bool(files) and all(f.parent.parent == folder for f in files)
    names = tuple(f.parent.name for f in files) if nested else None
    return RawSamples([open_image(f) for f in files], label_names=names, source=str(folder))


def _array_file(path: Path) -> RawSamples:
    try:
        if path.suffix == ".npz":
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                arrays = {name: torch.from_numpy(file[name]) for name in file.files}
        else:
            arrays = load_file(path)
    except (SafetensorError, OSError, ValueError, TypeError, *DAMAGED_ARCHIVE) as error:
        raise SeedsError(f"{path}: not a readable array file ({error})") from error
    images = next((arrays[key] for key in IMAGE_KEYS if key in arrays), None)
    if images is None:
        raise SeedsError(
            f"{path}: expected an array named one of {', '.join(IMAGE_KEYS)}, found {sorted(arrays)}"
        )
    if images.dim() != 4:
        raise SeedsError(f"{path}: expected images (N, 3, H, W) or (N, H, W, 3), found {tuple(images.shape)}")
    if images.shape[-1] == 3 and images.shape[1] != 3:
        images = images.permute(0, 3, 1, 2).contiguous()
    labels = next((arrays[key].long() for key in LABEL_KEYS if key in arrays), None)
    return RawSamples(images, labels, source=str(path))


def _not_empty(samples: RawSamples) -> RawSamples:
    if len(samples.samples) == 0:
        raise SeedsError(
            f"{samples.source}: no samples found; give at least one unlabelled sample of the task"
        )
    return samples


def _raw(sample: Tensor | Image.Image) -> bytes:
    if isinstance(sample, Tensor):
        return sample.contiguous().numpy().tobytes()
    pixels = np.asarray(sample.convert("RGB"))
    return pixels.transpose(2, 0, 1).tobytes()
