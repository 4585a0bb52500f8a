"""Seven common image corruptions at five severities (Hendrycks & Dietterich, arXiv 1903.12261).

The parameters are those of the data sets published with that paper, CIFAR-10-C for 32-pixel images and
ImageNet-C for 224-pixel ones. They are data, so their quirks stay: CIFAR-10-C blurs motion with the same σ at
severities 3 and 4, and spatter changes from water (1–3) to mud (4–5), which barely shows on black images.

Why not a library: see ``docs/dependencies.md``.
"""

import hashlib
from collections.abc import Callable
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from mingle.backbones import Samples
from mingle.errors import ConfigError, SeedsError, UnknownNameError
from mingle.suites import RawSamples

Pixels = NDArray[np.float64]
"""Height × width × RGB, in 0…255."""
Table = tuple[tuple[float, ...], ...]
"""The parameters of severities 1…5."""

SEVERITIES = (1, 2, 3, 4, 5)
SMALL = 84
"""Largest shorter side that takes the parameters for 32 pixels: beyond √(32 · 224) = 84.7, 224 is nearer."""
WATER: Pixels = np.array([175.0, 238.0, 238.0])
MUD: Pixels = np.array([63.0, 42.0, 20.0])
EMBOSS = np.array([[-2.0, -1.0, 0.0], [-1.0, 1.0, 1.0], [0.0, 1.0, 2.0]])
HIGHEST = 20
"""Pixels from the rim of a drop after which it rises no further."""


def corrupt(samples: Samples, name: str, severity: int, seed: int = 0) -> Samples:
    """The samples with one corruption of ``CORRUPTIONS``, at a severity of 1…5.

    A uint8 tensor (N, 3, H, W) gives one of the same shape and PIL images give RGB images of the same size,
    pixel for pixel the same. The random draws of a sample depend on ``seed``, ``name``, ``severity`` and its
    own pixels only, not on its place or its neighbours; equal samples are corrupted equally.

    Raises UnknownNameError, ConfigError for another severity, SeedsError for another tensor.
    """
    if name not in _CORRUPTIONS:
        raise UnknownNameError("corruption", name, CORRUPTIONS)
    if severity not in SEVERITIES:
        raise ConfigError(f"corruption {name}: expected a severity of 1…5, found {severity}")
    if not isinstance(samples, Tensor) and any(isinstance(sample, str) for sample in samples):
        raise SeedsError(f"corruption {name}: expected images, found text")
    if isinstance(samples, Tensor) and (
        samples.dtype != torch.uint8 or samples.dim() != 4 or samples.shape[1] != 3
    ):
        raise SeedsError(
            f"corruption {name}: expected a uint8 tensor (N, 3, H, W), found {samples.dtype} "
            f"{tuple(samples.shape)}; corrupt images before they are rescaled and normalised"
        )
    draws = [f"{seed}/{name}/{severity}/{sample_id}" for sample_id in RawSamples(samples).ids()]
    if not isinstance(samples, Tensor):
        return [
            Image.fromarray(_corrupt_one(np.asarray(image.convert("RGB")), name, severity, draw))
            for image, draw in zip(samples, draws, strict=True)
            if isinstance(image, Image.Image)
        ]
    corrupted = torch.empty_like(samples)
    for image, out, draw in zip(samples, corrupted, draws, strict=True):
        pixels = _corrupt_one(image.permute(1, 2, 0).numpy(), name, severity, draw)
        out.copy_(torch.from_numpy(pixels).permute(2, 0, 1))
    return corrupted


def _corrupt_one(image: NDArray[np.uint8], name: str, severity: int, draw: str) -> NDArray[np.uint8]:
    function, small, large = _CORRUPTIONS[name]
    table = small if min(image.shape[:2]) <= SMALL else large
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(draw.encode()).digest()))
    pixels = function(image.astype(np.float64), rng, *table[severity - 1])
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _contrast(image: Pixels, _: np.random.Generator, factor: float) -> Pixels:
    """Towards the mean: m + factor · (x − m), m that of each channel."""
    mean: Pixels = image.mean(axis=(0, 1))
    return mean + factor * (image - mean)


def _gaussian_noise(image: Pixels, rng: np.random.Generator, std: float) -> Pixels:
    """Adds ε ~ N(0, (255 std)²) for each channel of each pixel."""
    return image + rng.normal(scale=255 * std, size=image.shape)


def _impulse_noise(image: Pixels, rng: np.random.Generator, share: float) -> Pixels:
    """A share of the values becomes 0 or 255, half each: salt and pepper in each channel."""
    draw = rng.random(image.shape)
    return np.where(draw < share / 2, 0.0, np.where(draw >= 1 - share / 2, 255.0, image))


def _jpeg_compression(image: Pixels, _: np.random.Generator, quality: int) -> Pixels:
    """Through a JPEG file of that quality."""
    stream = BytesIO()
    _pil(image).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream), dtype=np.float64)


def _motion_blur(image: Pixels, rng: np.random.Generator, radius: int, sigma: float) -> Pixels:
    """Σᵢ wᵢ x(p + i u), wᵢ ∝ exp(−i² / 2σ²) for i = 0 … 2 radius, u a direction within ±45° of the x axis.

    One-sided as in ImageMagick, which made the published images; positions are rounded to whole pixels, and
    beyond the border its pixels repeat.
    """
    angle = rng.uniform(-np.pi / 4, np.pi / 4)
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    height, width = image.shape[:2]
    reach = 2 * radius
    padded = np.pad(image, ((reach, reach), (0, reach), (0, 0)), mode="edge")
    blurred = np.zeros_like(image)
    across, down = np.rint(steps * np.cos(angle)).astype(int), np.rint(steps * np.sin(angle)).astype(int)
    for weight, x, y in zip(weights, across, down, strict=True):
        blurred += weight * padded[reach + y : reach + y + height, x : x + width]
    return blurred


def _pixelate(image: Pixels, _: np.random.Generator, factor: float) -> Pixels:
    """Means over boxes: shrunk to ⌊factor · size⌋ and enlarged again."""
    height, width = image.shape[:2]
    small = (max(1, int(width * factor)), max(1, int(height * factor)))
    pixelated = _pil(image).resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX)
    return np.asarray(pixelated, dtype=np.float64)


def _spatter(
    image: Pixels,
    rng: np.random.Generator,
    mean: float,
    std: float,
    smooth: float,
    threshold: float,
    strength: float,
    mud: bool,
) -> Pixels:
    """Drops where noise N(mean, std²), smoothed with σ = smooth, exceeds the threshold.

    Mud covers: (1 − m) x + m · brown, m the drops smoothed with σ = strength and 0 where below 0.8.
    Water adds light: x + strength · m · turquoise, m the drops in relief, scaled to a maximum of 1.

    The relief is an embossed distance to the rim. The published images took Canny edges and an equalised
    histogram on the way to theirs, so drops of water look alike but are not equal.
    """
    liquid: Pixels = ndimage.gaussian_filter(rng.normal(mean, std, image.shape[:2]), smooth)
    drops = liquid > threshold
    if mud:
        cover: Pixels = ndimage.gaussian_filter(drops.astype(np.float64), strength)
        cover = np.where(cover < 0.8, 0.0, cover)[..., None]
        return (1 - cover) * image + cover * MUD
    height = np.minimum(ndimage.distance_transform_edt(drops), HIGHEST)
    light: Pixels = ndimage.uniform_filter(np.maximum(ndimage.correlate(height, EMBOSS), 0), 3)
    relief: Pixels = np.where(drops, liquid * light, 0)
    if not relief.any():
        return image
    relief *= strength / relief.max()
    return image + relief[..., None] * WATER


def _pil(image: Pixels) -> Image.Image:
    return Image.fromarray(image.astype(np.uint8))


def _each(*values: float) -> Table:
    return tuple((value,) for value in values)


_CORRUPTIONS: dict[str, tuple[Callable[..., Pixels], Table, Table]] = {
    "contrast": (_contrast, _each(0.75, 0.5, 0.4, 0.3, 0.15), _each(0.4, 0.3, 0.2, 0.1, 0.05)),
    "gaussian_noise": (
        _gaussian_noise,
        _each(0.04, 0.06, 0.08, 0.09, 0.10),
        _each(0.08, 0.12, 0.18, 0.26, 0.38),
    ),
    "impulse_noise": (
        _impulse_noise,
        _each(0.01, 0.02, 0.03, 0.05, 0.07),
        _each(0.03, 0.06, 0.09, 0.17, 0.27),
    ),
    "jpeg_compression": (_jpeg_compression, _each(80, 65, 58, 50, 40), _each(25, 18, 15, 10, 7)),
    "motion_blur": (
        _motion_blur,
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ),
    "pixelate": (_pixelate, _each(0.95, 0.9, 0.85, 0.75, 0.65), _each(0.6, 0.5, 0.4, 0.3, 0.25)),
    "spatter": (
        _spatter,
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, False),
            (0.65, 0.1, 0.8, 0.7, 0.5, False),
            (0.65, 0.3, 1, 0.69, 0.5, False),
            (0.65, 0.1, 0.7, 0.69, 0.6, True),
            (0.65, 0.1, 0.5, 0.68, 0.6, True),
        ),
        (
            (0.65, 0.3, 4, 0.69, 0.6, False),
            (0.65, 0.3, 3, 0.68, 0.6, False),
            (0.65, 0.3, 2, 0.68, 0.5, False),
            (0.65, 0.3, 1, 0.65, 1.5, True),
            (0.67, 0.4, 1, 0.65, 1.5, True),
        ),
    ),
}
"""What each does to an image, and its parameters for small images (CIFAR-10-C) and large (ImageNet-C)."""

CORRUPTIONS = tuple(sorted(_CORRUPTIONS))
"""The names, as in the robustness table of arXiv 2505.11883."""
