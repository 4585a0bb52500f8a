"""Seed pools as they may come: few, unbalanced, corrupted, of another task, augmented.

Each variation is a function of a pool, an amount and a ``random.Random``; equal arguments give equal pools.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from mingle.backbones import Samples
from mingle.errors import ConfigError, SeedsError, UnknownNameError
from mingle.evaluation.corruptions import CORRUPTIONS, corrupt
from mingle.suites import pick

COPIES = 4
"""Augmented copies that each seed gets beside itself."""

Augmentation = Callable[[Image.Image, Sequence[Image.Image], random.Random], Image.Image]


class Elsewhere(NamedTuple):
    """What a variation may ask for beside the pool itself: asked only where it is needed."""

    other: Callable[[], Samples]
    """The pool of another task."""

    classes: Callable[[], Tensor]
    """The class of every sample of the pool (N,), as the task's own model sees it."""


def vary(pool: Samples, kind: str, amount: float, draws: random.Random, elsewhere: Elsewhere) -> Samples:
    """The pool under a variation of ``VARIATIONS``.

    ``few``: ``amount`` samples of it. ``unbalanced``: classes in random order, the r-th of C keeps
    ``n · amount^(−r / (C−1))`` samples, at least one, where n is the size of the largest (long-tailed, as in
    arXiv 1901.05555). ``wrong``: a share ``amount`` is replaced by samples of another task. ``crops``,
    ``flips``, ``colour``, ``mixup``: ``amount`` samples, and four augmented copies of each. Any of
    ``CORRUPTIONS``: at severity ``amount``.

    Raises UnknownNameError, ConfigError for an amount that it cannot have, SeedsError for texts where images
    are needed and for another task without seeds.
    """
    if kind not in VARIATIONS:
        raise UnknownNameError("seed variation", kind, VARIATIONS)
    least, most, whole = _AMOUNTS.get(kind, (1, float("inf"), True))
    if not least <= amount <= most or (whole and not float(amount).is_integer()):
        raise ConfigError(
            f"seed variation {kind}: expected {'a whole number' if whole else 'an amount'} from {least:g} "
            f"to {most:g}, found {amount:g}"
        )
    if kind in CORRUPTIONS:
        return corrupt(pool, kind, int(amount))
    if kind == "wrong":
        other = elsewhere.other()
        if not len(other):
            raise SeedsError("seed variation wrong: the other task has no seeds")
        return _wrong(pool, other, amount, draws)
    if kind == "unbalanced":
        return pick(pool, _long_tail(elsewhere.classes().tolist(), amount, draws))
    kept = pick(pool, draws.sample(range(len(pool)), min(int(amount), len(pool))))
    return kept if kind == "few" else _augmented(kept, kind, draws)


def _wrong(pool: Samples, other: Samples, share: float, draws: random.Random) -> Samples:
    """The pool with that share of its samples replaced, in random places; of a small pool some come twice."""
    places = draws.sample(range(len(pool)), round(share * len(pool)))
    chosen = draws.sample(range(len(other)), len(other))
    foreign = pick(other, [chosen[i % len(chosen)] for i in range(len(places))])
    if isinstance(pool, Tensor) and isinstance(foreign, Tensor) and pool.shape[1:] == foreign.shape[1:]:
        mixed = pool.clone()
        mixed[places] = foreign
        return mixed
    samples = list(_images(pool) if isinstance(pool, Tensor) else pool)
    for place, sample in zip(
        places, _images(foreign) if isinstance(foreign, Tensor) else foreign, strict=True
    ):
        samples[place] = sample
    return samples  # type: ignore[return-value]


def _long_tail(classes: Sequence[int], ratio: float, draws: random.Random) -> list[int]:
    members: dict[int, list[int]] = {}
    for place, label in enumerate(classes):
        members.setdefault(label, []).append(place)
    most = max(map(len, members.values()))
    kept = []
    for rank, label in enumerate(draws.sample(sorted(members), len(members))):
        size = max(1, round(most * ratio ** (-rank / max(1, len(members) - 1))))
        kept += draws.sample(members[label], min(size, len(members[label])))
    return sorted(kept)


def _augmented(kept: Samples, kind: str, draws: random.Random) -> Samples:
    """The samples followed by their augmented copies."""
    if not isinstance(kept, Tensor) and any(isinstance(sample, str) for sample in kept):
        raise SeedsError(f"seed variation {kind}: expected images, found text")
    images = _images(kept)
    copies = [AUGMENTATIONS[kind](image, images, draws) for _ in range(COPIES) for image in images]
    if not isinstance(kept, Tensor):
        return [*images, *copies]
    pixels = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in copies]
    return torch.cat([kept, torch.stack(pixels)])


def _images(samples: Samples) -> list[Image.Image]:
    if isinstance(samples, Tensor):
        return [Image.fromarray(sample.permute(1, 2, 0).numpy()) for sample in samples]
    return [sample.convert("RGB") for sample in samples if isinstance(sample, Image.Image)]


def _crop(image: Image.Image, among: Sequence[Image.Image], draws: random.Random) -> Image.Image:
    """A square share of 60 to 100 % of either side, enlarged again."""
    del among
    share = draws.uniform(0.6, 1)
    width, height = share * image.width, share * image.height
    left, top = draws.uniform(0, image.width - width), draws.uniform(0, image.height - height)
    box = (left, top, left + width, top + height)
    return image.resize(image.size, Image.Resampling.BILINEAR, box=box)


def _flip(image: Image.Image, among: Sequence[Image.Image], draws: random.Random) -> Image.Image:
    """Left to right, top to bottom, or both."""
    del among
    return image.transpose(
        draws.choice(
            (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_180)
        )
    )


def _colour(image: Image.Image, among: Sequence[Image.Image], draws: random.Random) -> Image.Image:
    """Brightness, contrast and saturation, each times 0.6 to 1.4."""
    del among
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = change(image).enhance(draws.uniform(0.6, 1.4))
    return image


def _mixup(image: Image.Image, among: Sequence[Image.Image], draws: random.Random) -> Image.Image:
    """``λ x + (1 − λ) x'``, λ uniform, x' another of the seeds (arXiv 1710.09412 with α = 1)."""
    partner = draws.choice([other for other in among if other is not image] or among)
    return Image.blend(partner.resize(image.size), image, draws.random())


AUGMENTATIONS: Mapping[str, Augmentation] = {
    "crops": _crop,
    "flips": _flip,
    "colour": _colour,
    "mixup": _mixup,
}
"""What makes a copy of a seed, given all seeds."""

_AMOUNTS: Mapping[str, tuple[float, float, bool]] = {
    "wrong": (0, 1, False),
    "unbalanced": (1, float("inf"), False),
    **dict.fromkeys(CORRUPTIONS, (1.0, 5.0, True)),
}
"""Least, most, and whether it is a whole number; otherwise a number of samples."""

VARIATIONS = ("few", "unbalanced", "wrong", *AUGMENTATIONS, *CORRUPTIONS)
