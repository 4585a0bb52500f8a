"""Samples from image folders, array files, suites or memory, with a hash for each."""

import hashlib
import random
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from mingle.backbones import Samples
from mingle.errors import SeedsError, translated
from mingle.files import DATA_LIMIT, exists, expanded, parse_json, read_text
from mingle.suites.base_images import IMAGE_SUFFIXES, LazyImages, image_files, open_image
from mingle.suites.base_suite import Suite, suite_part

IMAGE_KEYS = ("images", "seed_images", "pixel_values", "x")
LABEL_KEYS = ("labels", "y")
UNPACKED = 2**28
"""Bytes that any archive may unpack to; more only up to ``RATIO`` times its own size."""

RATIO = 50


@dataclass(frozen=True)
class RawSamples:
    """Samples as they came, with labels (N,) or class names where the source has them."""

    samples: Samples
    labels: Tensor | None = None
    label_names: tuple[str, ...] | None = None
    source: str = "memory"

    def take(self, index: list[int]) -> "RawSamples":
        """The chosen samples."""
        names = None if self.label_names is None else tuple(self.label_names[i] for i in index)
        labels = None if self.labels is None else self.labels[index]
        return RawSamples(pick(self.samples, index), labels, names, self.source)

    def labels_in(self, classes: Sequence[str]) -> Tensor | None:
        """Labels (N,) by the names of the samples' folders; None where these are not names of classes."""
        if self.label_names is None:
            return None
        names, known = list(self.label_names), list(classes)
        if not set(names) <= set(known):
            names, known = [words(name) for name in names], [words(name) for name in known]
        if not set(names) <= set(known) or len(set(known)) < len(known):
            return None
        return torch.tensor([known.index(name) for name in names])

    def ids(self) -> tuple[str, ...]:
        """A short content hash of every sample: the same pixels are recognised wherever they come from."""
        return tuple(hashlib.sha256(_raw(sample)).hexdigest()[:16] for sample in self.samples)


def pick(samples: Samples, index: Sequence[int]) -> Samples:
    """The chosen samples; image files stay closed."""
    if isinstance(samples, Tensor):
        return samples[torch.as_tensor(index, dtype=torch.int64)]
    if isinstance(samples, LazyImages):
        return samples.take(index)
    return [samples[i] for i in index]  # type: ignore[return-value]


def words(name: str) -> str:
    """A label's name as words: ``AnnualCrop``, ``annual_crop``, ``Annual-Crop`` are all ``annual crop``."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return " ".join(re.findall(r"\w+", apart.lower().replace("_", " ")))


def suite_samples(suite: Suite, task: str, *, scored: bool = False) -> RawSamples:
    """A task's unlabelled seeds or, ``scored``, its labelled test samples (the paper's protocol)."""
    samples, labels = suite.test(task) if scored else (suite.seeds(task), None)
    return RawSamples(
        samples, labels, source=f"{suite.name}:{task} ({'test images' if scored else 'seed pool'})"
    )


def load_samples(
    source: str | Path | Samples | RawSamples,
    *,
    scored: bool = False,
    limit: int | None = None,
    seed: int = 0,
) -> RawSamples:
    """Reads ``suite:task``, an image folder, a ``.safetensors``, ``.npz`` or ``.jsonl`` file, or memory.

    A list of strings is a list of texts, unless they end like image files.
    ``scored`` takes a suite's labelled test images instead of its unlabelled seeds (the paper's protocol).
    A folder whose images lie in one subfolder per class brings class names; array files may bring labels.
    ``limit``: of more samples than that, a random choice by ``seed``; files are chosen before they are read.
    Raises SeedsError.
    """
    if isinstance(source, str | Path) and exists(source) and expanded(source).is_dir():
        return _not_empty(_image_folder(expanded(source), limit, seed))
    found = _not_empty(source if isinstance(source, RawSamples) else _load(source, scored=scored))
    chosen = _choice(len(found.samples), limit, seed)
    return found if chosen is None else found.take(chosen)


def _load(source: str | Path | Samples, *, scored: bool) -> RawSamples:
    if not isinstance(source, str | Path):
        return RawSamples(_in_memory(source))
    part = suite_part(str(source))
    if part is not None:
        return suite_samples(*part, scored=scored)
    path = expanded(source)
    if not exists(path):
        raise SeedsError(
            f"{source}: no such file or folder; expected images, .safetensors, .npz, .jsonl or suite:task"
        )
    if path.suffix in (".safetensors", ".npz"):
        return _array_file(path)
    if path.suffix == ".jsonl":
        return _text_file(path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return RawSamples([open_image(path)], source=str(path))
    raise SeedsError(
        f"{path}: expected a folder of images, .safetensors, .npz or .jsonl, "
        f"found {path.suffix or 'no suffix'}"
    )


def _in_memory(samples: object) -> Samples:
    if isinstance(samples, np.ndarray):
        samples = torch.from_numpy(samples)
    if isinstance(samples, Tensor | LazyImages):
        return samples
    items = [samples] if isinstance(samples, Image.Image) else samples
    if isinstance(items, Sequence):
        if items and all(isinstance(item, str) and not _names_image(item) for item in items):
            return list(items)
        images = [open_image(Path(item)) if isinstance(item, str | Path) else item for item in items]
        if all(isinstance(image, Image.Image) for image in images):
            return images
    raise SeedsError(
        "samples: expected a tensor, an array, or a list of images, image files or texts, "
        f"found {type(samples).__name__}"
    )


def _names_image(text: str) -> bool:
    return Path(text).suffix.lower() in IMAGE_SUFFIXES


def _choice(count: int, limit: int | None, seed: int) -> list[int] | None:
    if limit is None or count <= limit:
        return None
    return sorted(random.Random(seed).sample(range(count), limit))


def _image_folder(folder: Path, limit: int | None, seed: int) -> RawSamples:
    files = image_files(folder)
    chosen = _choice(len(files), limit, seed)
    if chosen is not None:
        files = [files[i] for i in chosen]
    nested = bool(files) and all(f.parent.parent == folder for f in files)
    names = tuple(f.parent.name for f in files) if nested else None
    return RawSamples(LazyImages.of_files(files), label_names=names, source=str(folder))


def _text_file(path: Path) -> RawSamples:
    """One JSON object per line: ``text`` and, where there is one, ``label`` (an index)."""
    try:
        lines = read_text(path, DATA_LIMIT).split("\n")
        rows = [parse_json(line) for line in lines if line.strip()]
        texts = [str(row["text"]) for row in rows]
        labels = torch.tensor([int(row["label"]) for row in rows]) if rows and "label" in rows[0] else None
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RuntimeError) as error:
        raise SeedsError(f'{path}: expected lines like {{"text": "…", "label": 0}} ({error!r})') from error
    return RawSamples(texts, labels, source=str(path))


def _array_file(path: Path) -> RawSamples:
    with translated(SeedsError, f"{path}: not a readable array file"):
        arrays = _unpacked(path) if path.suffix == ".npz" else load_file(path)
    images = next((arrays[key] for key in IMAGE_KEYS if key in arrays), None)
    if images is None:
        raise SeedsError(
            f"{path}: expected an array named one of {', '.join(IMAGE_KEYS)}, found {sorted(arrays)}"
        )
    if images.dim() != 4:
        raise SeedsError(f"{path}: expected images (N, 3, H, W) or (N, H, W, 3), found {tuple(images.shape)}")
    if images.shape[-1] == 3 and images.shape[1] != 3:
        images = images.permute(0, 3, 1, 2).contiguous()
    labels = next((arrays[key] for key in LABEL_KEYS if key in arrays), None)
    if labels is not None and (labels.shape != images.shape[:1] or not _whole(labels)):
        raise SeedsError(
            f"{path}: expected one whole number per image as labels ({len(images)}), found "
            f"{tuple(labels.shape)}, {labels.dtype}"
        )
    return RawSamples(images, None if labels is None else labels.long(), source=str(path))


def _whole(values: Tensor) -> bool:
    return not (values.is_floating_point() or values.is_complex())


def _unpacked(path: Path) -> dict[str, Tensor]:
    """The arrays of an archive. Raises ValueError for one that unpacks to far more than it is."""
    with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
        size = sum(part.file_size for part in archive.infolist())
    if size > max(UNPACKED, RATIO * path.stat().st_size):
        raise ValueError(f"unpacks to {size >> 20} MB, more than {RATIO} times its size")
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def _not_empty(samples: RawSamples) -> RawSamples:
    if len(samples.samples) == 0:
        raise SeedsError(
            f"{samples.source}: no samples found; give at least one unlabelled sample of the task"
        )
    return samples


def _raw(sample: Tensor | Image.Image | str) -> bytes:
    if isinstance(sample, str):
        return sample.encode()
    if isinstance(sample, Tensor):
        return bytes(sample.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    pixels = np.asarray(sample.convert("RGB"))
    return pixels.transpose(2, 0, 1).tobytes()
