"""Image corruptions: the formulas, the draws of a sample, and how they grow with severity."""

from io import BytesIO
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest
import torch
from PIL import Image

from mingle.errors import ConfigError, SeedsError, UnknownNameError
from mingle.evaluation import CORRUPTIONS, corrupt

RANDOM = {"gaussian_noise", "impulse_noise", "motion_blur", "spatter"}
SEVERITIES = range(1, 6)
SMALL, LARGE = 32, 96
LEVEL = {("motion_blur", SMALL): 3, ("spatter", SMALL): 3, ("spatter", LARGE): 2}
"""After this severity the published parameters do not make the next one worse."""


def natural(count, size, seed=0):
    """Coloured noise with the falling spectrum of photographs, mean 128."""
    x, y = np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size))
    frequency = np.hypot(x, y)
    frequency[0, 0] = np.inf
    noise = np.random.default_rng(seed).normal(size=(count, 3, size, size))
    images = np.fft.ifft2(np.fft.fft2(noise) / frequency**1.2).real
    images *= 50 / images.std(axis=(1, 2, 3), keepdims=True)
    return torch.from_numpy(np.clip(128 + images, 0, 255).astype(np.uint8))


def flat(size, value=128):
    return torch.full((1, 3, size, size), value, dtype=torch.uint8)


def pil(images):
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


def distance(a, b):
    return ((a.double() - b.double()) ** 2).mean().item()


def test_names_are_pinned():
    assert CORRUPTIONS == (
        "contrast",
        "gaussian_noise",
        "impulse_noise",
        "jpeg_compression",
        "motion_blur",
        "pixelate",
        "spatter",
    )


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_sample_is_corrupted_alike_wherever_it_stands(name):
    images = natural(4, 32)
    before = images.clone()
    together = corrupt(images, name, 5, seed=3)
    assert together.shape == images.shape
    assert together.dtype == torch.uint8
    assert torch.equal(images, before)
    assert torch.equal(corrupt(images.flip(0), name, 5, seed=3), together.flip(0))
    assert torch.equal(corrupt(images[2:3], name, 5, seed=3), together[2:3])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_seed_changes_what_is_random_and_nothing_else(name):
    images = natural(2, 32)
    same = torch.equal(corrupt(images, name, 5, seed=0), corrupt(images, name, 5, seed=1))
    assert same == (name not in RANDOM)


def test_severities_draw_independently():
    noise = [corrupt(flat(32), "gaussian_noise", severity).double().flatten() for severity in SEVERITIES]
    assert (torch.stack(noise).corrcoef() - torch.eye(5)).abs().max() < 0.1


@pytest.mark.parametrize("severity", [2, 5])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_pil_images_and_tensors_give_the_same_pixels(name, severity):
    images = natural(2, 40)[:, :, :30]
    found = corrupt(pil(images), name, severity)
    assert [(image.mode, image.size) for image in found] == [("RGB", (40, 30))] * 2
    expected = corrupt(images, name, severity).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(np.stack([np.asarray(image) for image in found]), expected)


def test_grey_images_become_rgb_of_their_own_size():
    sizes = [(20, 31), (100, 90)]
    found = corrupt([Image.new("L", size, 200) for size in sizes], "contrast", 1)
    assert [(image.mode, image.size) for image in found] == [("RGB", size) for size in sizes]
    assert all(image.getpixel((0, 0)) == (200, 200, 200) for image in found)


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_higher_severity_is_further_from_the_clean_image(name, size):
    images = natural(24, size)
    far = [distance(corrupt(images, name, severity), images) for severity in SEVERITIES]
    assert far[0] > 10
    for severity, (less, more) in enumerate(pairwise(far), start=1):
        if LEVEL.get((name, size)) == severity:
            assert 0.6 * less < more < 1.1 * less
        else:
            assert more > 1.04 * less


@pytest.mark.parametrize(
    ("size", "factors"), [(32, (0.75, 0.5, 0.4, 0.3, 0.15)), (96, (0.4, 0.3, 0.2, 0.1, 0.05))]
)
def test_contrast_shrinks_the_distance_to_the_mean_of_each_channel(size, factors):
    image = natural(1, size)
    for severity, factor in zip(SEVERITIES, factors, strict=True):
        found = corrupt(image, "contrast", severity)[0].double()
        for channel, values in zip(found, image[0].double(), strict=True):
            mean = values.mean()
            torch.testing.assert_close(channel, mean + factor * (values - mean), rtol=0, atol=0.5 + 1e-9)


def test_pixelate_takes_means_of_boxes():
    # 100 pixels at 0.5 and 0.25: boxes of 2 × 2 and 4 × 4, exactly.
    image = natural(1, 100)
    for severity, box in ((2, 2), (5, 4)):
        found = corrupt(image, "pixelate", severity)[0].double()
        boxes = image[0].double().unflatten(1, (-1, box)).unflatten(3, (-1, box)).mean(dim=(2, 4))
        expected = boxes.repeat_interleave(box, 1).repeat_interleave(box, 2)
        # Pillow rounds after each direction.
        torch.testing.assert_close(found, expected, rtol=0, atol=1.0)
        assert len(found[0].unfold(0, box, box).unfold(1, box, box).unique(dim=0)) == 100 // box
        assert torch.equal(found[:, ::box, ::box], found[:, box - 1 :: box, box - 1 :: box])


@pytest.mark.parametrize(("size", "kept"), [(32, [30, 28, 27, 24, 20]), (100, [60, 50, 40, 30, 25])])
def test_pixelate_keeps_the_published_number_of_pixels(size, kept):
    # ⌊size · factor⌋ different columns in a ramp.
    ramp = (torch.arange(size) * (256 // size)).to(torch.uint8).expand(1, 3, size, size)
    assert [len(corrupt(ramp, "pixelate", severity)[0, 0, 0].unique()) for severity in SEVERITIES] == kept


@pytest.mark.parametrize(("size", "qualities"), [(32, (80, 65, 58, 50, 40)), (96, (25, 18, 15, 10, 7))])
def test_jpeg_is_a_file_of_the_published_quality(size, qualities):
    image = natural(1, size)
    for severity, quality in zip(SEVERITIES, qualities, strict=True):
        stream = BytesIO()
        pil(image)[0].save(stream, "JPEG", quality=quality)
        expected = np.asarray(Image.open(stream))
        assert np.array_equal(corrupt(pil(image), "jpeg_compression", severity)[0], expected)


@pytest.mark.parametrize(
    ("size", "stds"), [(84, (0.04, 0.06, 0.08, 0.09, 0.10)), (85, (0.08, 0.12, 0.18, 0.26, 0.38))]
)
def test_gaussian_noise_has_the_published_deviation(size, stds):
    for severity, std in zip(SEVERITIES, stds, strict=True):
        noise = corrupt(flat(size), "gaussian_noise", severity).double() - 128
        # 127 / 255 deviates where the noise is clipped: compare quartiles, which clipping leaves alone.
        low, high = torch.quantile(noise, torch.tensor([0.25, 0.75], dtype=torch.double))
        assert (high - low).item() / (2 * 0.67449) == pytest.approx(255 * std, rel=0.05)
        assert noise.mean().item() == pytest.approx(0, abs=0.05 * 255 * std)
        channels = noise[0].flatten(1).corrcoef()
        assert (channels - torch.eye(3)).abs().max() < 0.05


@pytest.mark.parametrize(
    ("size", "shares"), [(84, (0.01, 0.02, 0.03, 0.05, 0.07)), (96, (0.03, 0.06, 0.09, 0.17, 0.27))]
)
def test_impulse_noise_is_salt_and_pepper_in_equal_parts(size, shares):
    image = flat(size).expand(4, 3, size, size).clone()
    image += torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1)
    for severity, share in zip(SEVERITIES, shares, strict=True):
        found = corrupt(image, "impulse_noise", severity)
        salt, pepper = (found == 255), (found == 0)
        assert torch.equal(found[~(salt | pepper)], image[~(salt | pepper)])
        # Four deviations of a share of 4 · 3 · size² draws.
        slack = 4 * (share / 2 / found.numel()) ** 0.5
        assert salt.double().mean().item() == pytest.approx(share / 2, abs=slack)
        assert pepper.double().mean().item() == pytest.approx(share / 2, abs=slack)


def test_motion_blur_of_a_point_is_one_sided_gaussian_within_45_degrees():
    angles = set()
    for seed in range(6):
        image = flat(33, 0)
        image[..., 16, 24] = 255
        blurred = corrupt(image, "motion_blur", 5, seed)[0, 0].double()
        rows, columns = blurred.nonzero(as_tuple=True)
        # Pixel p shows p + i u: light lies to the left of the point.
        assert columns.max() == 24
        assert ((rows - 16).abs() <= 24 - columns).all()
        weights = torch.exp(-(torch.arange(19.0) ** 2) / (2 * 2.5**2))
        assert blurred[16, 24].item() == round(255 * (weights[0] / weights.sum()).item())
        assert blurred.sum().item() == pytest.approx(255, abs=3)
        angles.add(tuple(rows.tolist()))
    assert len(angles) > 3


@pytest.mark.parametrize(("size", "sigmas"), [(33, (1, 1.5, 2, 2, 2.5)), (99, (3, 5, 8, 12, 15))])
def test_motion_blur_has_the_published_width(size, sigmas):
    image = flat(size, 0)
    image[..., size // 2, size - 2] = 255
    for severity, sigma in zip(SEVERITIES, sigmas, strict=True):
        reach = 2 * ((6, 6, 6, 8, 9) if size == 33 else (10, 15, 15, 15, 20))[severity - 1]
        first = 1 / np.exp(-(np.arange(reach + 1) ** 2) / (2 * sigma**2)).sum()
        blurred = corrupt(image, "motion_blur", severity)
        assert blurred[0, 0, size // 2, size - 2].item() == round(255 * first)


def test_motion_blur_repeats_the_border():
    assert torch.equal(corrupt(flat(32, 77), "motion_blur", 5), flat(32, 77))
    # A step at the right edge: outside it goes on with the edge's colour.
    image = flat(32, 0)
    image[..., -1] = 200
    assert (corrupt(image, "motion_blur", 5)[..., -1] == 200).all()


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_spatter_is_light_first_and_mud_later(size):
    image = flat(size, 100).expand(8, 3, size, size).clone()
    image[:, :, 0, 0] = torch.arange(8, dtype=torch.uint8).view(8, 1)
    inner = (slice(None), slice(None), slice(1, None), slice(1, None))
    for severity in (1, 2, 3):
        added = corrupt(image, "spatter", severity)[inner].double() - 100
        assert added.min() == 0
        # The brightest pixel of each image gets the whole strength, in the colour of water.
        strength = 0.6 if size == LARGE and severity < 3 else 0.5
        peaks = added.flatten(2).amax(dim=2)
        expected = (strength * torch.tensor([175.0, 238.0, 238.0])).round().clamp(max=155)
        assert torch.equal(peaks.mode(dim=0).values, expected.double())
    for severity in (4, 5):
        found = corrupt(image, "spatter", severity)[inner].double()
        darkest = found.amin(dim=(0, 2, 3))
        torch.testing.assert_close(darkest, torch.tensor([63.0, 42.0, 20.0]).double(), rtol=0, atol=5)
        # Nothing lies between clean and four fifths mud.
        assert not ((found[:, 0] < 99.5) & (found[:, 0] > 100 - 0.8 * 37 + 0.5)).any()


@pytest.mark.parametrize(
    ("size", "drops"),
    [
        (32, ((0.62, 0.1, 0.7, 0.7), (0.65, 0.1, 0.8, 0.7), (0.65, 0.3, 1, 0.69))),
        (32, ((0.65, 0.1, 0.7, 0.69), (0.65, 0.1, 0.5, 0.68))),
        (96, ((0.65, 0.3, 4, 0.69), (0.65, 0.3, 3, 0.68), (0.65, 0.3, 2, 0.68))),
        (96, ((0.65, 0.3, 1, 0.65), (0.67, 0.4, 1, 0.65))),
    ],
    ids=["water-32", "mud-32", "water-96", "mud-96"],
)
def test_spatter_covers_the_share_that_smoothed_noise_has_above_the_threshold(size, drops):
    count = 40
    image = flat(size, 100).expand(count, 3, size, size).clone()
    image[:, :, 0, 0] = torch.arange(count, dtype=torch.uint8).view(count, 1)
    water = len(drops) == 3
    for severity, (mean, std, smooth, threshold) in enumerate(drops, start=1 if water else 4):
        weights = np.exp(-(np.arange(-20, 21) ** 2) / (2 * smooth**2))
        weights /= weights.sum()
        share = 1 - NormalDist(mean, std * (weights**2).sum()).cdf(threshold)
        changed = (corrupt(image, "spatter", severity) != image).any(dim=1).double().mean().item()
        # Of mud only the inside of larger drops is left after the cut at 0.8.
        low, high = (0.75, 1.25) if water else (0.15, 0.45)
        assert low * share < changed < high * share


def test_an_image_without_a_drop_stays_as_it_is():
    # Of single pixels, 2 % have a drop at severity 1.
    pixels = torch.arange(30, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 1, 1).contiguous()
    found = corrupt(pixels, "spatter", 1)
    assert (found == pixels).all(dim=1).double().mean() > 0.5


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_no_samples_give_none(name):
    empty = torch.zeros(0, 3, 32, 32, dtype=torch.uint8)
    assert corrupt(empty, name, 1).shape == empty.shape
    assert corrupt([], name, 1) == []


def test_unknown_names_get_the_nearest_ones():
    with pytest.raises(UnknownNameError, match=r"unknown corruption 'gausian_noise'; did you mean gaussian"):
        corrupt(natural(1, 8), "gausian_noise", 1)


@pytest.mark.parametrize("severity", [0, 6, -1])
def test_other_severities_are_refused(severity):
    with pytest.raises(ConfigError, match=rf"contrast: expected a severity of 1…5, found {severity}"):
        corrupt(natural(1, 8), "contrast", severity)


@pytest.mark.parametrize(
    "samples",
    [
        torch.zeros(2, 3, 8, 8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 8, 8, 3, dtype=torch.uint8),
    ],
)
def test_other_tensors_are_refused(samples):
    with pytest.raises(SeedsError, match=r"expected a uint8 tensor \(N, 3, H, W\), found torch\."):
        corrupt(samples, "contrast", 1)
