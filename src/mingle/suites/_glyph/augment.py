"""Turn batches of rendered sources into square RGB pictures: geometry, colours, clutter and noise.

Lengths are those of a side of 32 pixels; a picture with another side is the same, finer or coarser.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from mingle.suites._glyph.recipe import IMAGE_SIZE

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
# look -> (degrees, smallest scale, largest scale, shift as a share of half the side, shear)
GEOMETRY = {
    "gray": (12.0, 0.85, 1.1, 0.12, 0.15),
    "gray_flip": (6.0, 0.9, 1.08, 0.08, 0.05),
    "glyph": (10.0, 0.75, 1.1, 0.14, 0.12),
    "clutter": (10.0, 0.7, 0.95, 0.12, 0.1),
    "colour": (15.0, 0.75, 1.1, 0.14, 0.1),
    "colour_flip": (15.0, 0.75, 1.1, 0.14, 0.15),
}


def uniform(gen: torch.Generator, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform numbers between two bounds."""
    return torch.rand(*shape, generator=gen) * (high - low) + low


def affine(count: int, look: str, strength: float, gen: torch.Generator, side: int) -> Tensor:
    """Sampling grids for a random rotation, scale, aspect, shear and shift of each image."""
    degrees, small, large, shift, shear = GEOMETRY[look]
    angle = uniform(gen, count, low=-1, high=1) * math.radians(degrees) * strength
    middle, reach = (small + large) / 2, (large - small) / 2 * strength
    size = middle + reach * uniform(gen, count, 2, low=-1, high=1) * torch.tensor([1.0, 0.35])
    across, skew = 1 / size[:, 0], uniform(gen, count, low=-1, high=1) * shear * strength
    down = across * middle / size[:, 1]
    if look.endswith("_flip"):
        across = across * torch.where(torch.rand(count, generator=gen) < 0.5, -1.0, 1.0)
    move = uniform(gen, count, 2, low=-1, high=1) * shift * strength
    cos, sin = angle.cos(), angle.sin()
    rows = torch.stack(
        [
            torch.stack([cos * across, (skew - sin) * across, move[:, 0]], 1),
            torch.stack([sin * down, cos * down, move[:, 1]], 1),
        ],
        1,
    )
    return functional.affine_grid(rows, [count, 4, side, side], align_corners=False)


def background(count: int, look: str, gen: torch.Generator, side: int) -> Tensor:
    """Plain colours or soft gradients; with `clutter`, coarse colour noise and stripes as well."""
    plain = uniform(gen, count, 3, 1, 1).expand(-1, -1, side, side)
    cells = 6 if look == "clutter" else 2
    noise = uniform(gen, count, 3, cells, cells, low=-1, high=1) * (0.35 if look == "clutter" else 0.15)
    picture = plain + functional.interpolate(noise, size=side, mode="bilinear", align_corners=False)
    if look == "clutter":
        line = (torch.arange(side) * (IMAGE_SIZE / side)).view(1, 1, -1)
        phase, period = uniform(gen, count, 1, 1, high=6.3), uniform(gen, count, 1, 1, low=3, high=9)
        stripes = ((line / period * 6.3 + phase).sin() > 0.6).float() * uniform(
            gen, count, 3, 1, low=-0.25, high=0.25
        )
        tilted = torch.rand(count, 1, 1, 1, generator=gen) < 0.5
        picture = picture + torch.where(tilted, stripes.unsqueeze(2), stripes.unsqueeze(3))
    return picture.clamp(0, 1)


def contrasting(behind: Tensor, gen: torch.Generator) -> Tensor:
    """For each picture a random ink colour whose brightness differs clearly from what is behind it."""
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3)
    mean = behind.mean(dim=(2, 3))
    ink = uniform(gen, len(behind), 3)
    dark, light = (mean * weights).sum(1, keepdim=True), (ink * weights).sum(1, keepdim=True)
    target = torch.where(dark > 0.5, dark - 0.35 - 0.3 * light, dark + 0.35 + 0.3 * light)
    return (ink + target - light).clamp(0, 1).view(-1, 3, 1, 1)


def compose(
    rgba: Tensor, mono: Tensor, look: str, strength: float, gen: torch.Generator, side: int = IMAGE_SIZE
) -> Tensor:
    """RGBA sources (B, 4, S, S) uint8 -> pictures (B, 3, side, side) in 0..1."""
    count = len(rgba)
    source = rgba.float() / 255
    source[:, :3] *= source[:, 3:]
    moved = functional.grid_sample(source, affine(count, look, strength, gen, side), align_corners=False)
    alpha = moved[:, 3:]
    if look.startswith("gray"):
        return (
            (alpha * uniform(gen, count, 1, 1, 1, low=1 - 0.25 * strength, high=1.0))
            .expand(-1, 3, -1, -1)
            .clamp(0, 1)
        )
    behind = background(count, look, gen, side)
    ink = contrasting(behind, gen)
    if look == "clutter":
        behind = neighbours(source, behind, ink, gen)
    own = moved[:, :3] * uniform(gen, count, 3, 1, 1, low=1 - 0.2 * strength, high=1.0)
    front = torch.where(mono.view(-1, 1, 1, 1), ink * alpha, own)
    picture = front + behind * (1 - alpha)
    gain = uniform(gen, count, 1, 1, 1, low=1 - 0.25 * strength, high=1 + 0.15 * strength)
    picture = (picture - 0.5) * gain + 0.5 + uniform(gen, count, 1, 1, 1, low=-0.08, high=0.08) * strength
    sigma = uniform(gen, count, 1, 1, 1, high=0.12 if look == "clutter" else 0.05) * strength
    return (picture + sigma * torch.randn(picture.shape, generator=gen)).clamp(0, 1)


def neighbours(source: Tensor, behind: Tensor, ink: Tensor, gen: torch.Generator) -> Tensor:
    """Parts of other digits of the batch at the left and right edge, as house numbers have them."""
    count, side = len(source), behind.shape[-1]
    for step, edge in ((1, -1.0), (2, 1.0)):
        rows = torch.zeros(count, 2, 3)
        rows[:, 0, 0] = rows[:, 1, 1] = 1.2
        rows[:, 0, 2] = edge * uniform(gen, count, low=1.25, high=1.6)
        grid = functional.affine_grid(rows, [count, 1, side, side], align_corners=False)
        other = functional.grid_sample(source[:, 3:].roll(step, 0), grid, align_corners=False)
        behind = ink * other + behind * (1 - other)
    return behind


def erase(pictures: Tensor, share: float, gen: torch.Generator) -> Tensor:
    """Hide one random square (6 to 12 pixels of 32) in a share of the pictures, in place."""
    full = pictures.shape[-1]
    bounds = [
        (low * full // IMAGE_SIZE, high * full // IMAGE_SIZE) for low, high in ((6, 13), (0, 26), (0, 26))
    ]
    for index in torch.nonzero(torch.rand(len(pictures), generator=gen) < share).flatten().tolist():
        side, left, top = (int(torch.randint(low, high, (1,), generator=gen)) for low, high in bounds)
        pictures[index, :, top : top + side, left : left + side] = torch.rand(3, 1, 1, generator=gen)
    return pictures


def normalise(pictures: Tensor) -> Tensor:
    """CLIP's normalisation of pictures in 0..1."""
    return (pictures - MEAN) / STD
