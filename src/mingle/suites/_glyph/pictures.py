"""The pictures of a task that a suite holds: test and seed images from the held-out side, training images."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from mingle.errors import ConfigError
from mingle.suites._build.draws import SEED, generator
from mingle.suites._glyph.augment import compose
from mingle.suites._glyph.build_folder import Array, Bag
from mingle.suites._glyph.finetune import TrainingSide
from mingle.suites._glyph.recipe import IMAGE_SIZE, Task

TEST_IMAGES, SEED_IMAGES, TRAIN_IMAGES, STRENGTH = 360, 150, 2000, 0.6
FEW = 20  # a class with fewer held-out sources than this shares them between test and seed images


def split_sources(bag: Bag, rng: np.random.Generator, classes: int) -> tuple[list[Array], list[Array]]:
    """Held-out sources of each class for test and for seed images: two parts where there are enough."""
    for_test, for_seeds = [], []
    for label in range(classes):
        index = rng.permutation(np.flatnonzero(bag["held"] & (bag["labels"] == label)))
        cut = len(index) if len(index) < FEW else int(len(index) * 0.7)
        for_test.append(index[:cut])
        for_seeds.append(index if len(index) < FEW else index[cut:])
    return for_test, for_seeds


def pictures(
    bag: Bag, pools: list[Array], count: int, look: str, key: int, side: int = IMAGE_SIZE
) -> tuple[Tensor, Tensor]:
    """``count`` class-balanced uint8 pictures with labels; each class walks through its own sources."""
    labels = torch.arange(count) % len(pools)
    rounds = [number // len(pools) for number in range(count)]
    chosen = [
        pools[label][turn % len(pools[label])] for label, turn in zip(labels.tolist(), rounds, strict=True)
    ]
    order = torch.randperm(count, generator=generator(12, key))
    index = np.array(chosen)[order.numpy()]
    rgba, mono = torch.from_numpy(bag["rgba"][index]), torch.from_numpy(bag["mono"][index])
    strength = 0.0 if look.startswith("gray") else STRENGTH
    return as_bytes(compose(rgba, mono, look, strength, generator(10, key), side)), labels[order]


def as_bytes(images: Tensor) -> Tensor:
    """Pictures in 0..1 as uint8."""
    return (images * 255).round().to(torch.uint8).contiguous()


def write_data(bag: Bag, task: Task, target: Path, side: int = IMAGE_SIZE) -> None:
    """Class-balanced test images and unlabelled seeds, from held-out sources alone; no seed is a test image.

    Raises ConfigError when a class has no held-out source.
    """
    classes = len(task.classes)
    for_test, for_seeds = split_sources(bag, np.random.default_rng([SEED, 11, task.number]), classes)
    empty = [name for name, pool in zip(task.classes, for_test, strict=True) if len(pool) == 0]
    if empty:
        raise ConfigError(f"task {task.name!r}: no held-out source of {', '.join(empty)}; see tasks.yaml")
    count = TEST_IMAGES - TEST_IMAGES % classes
    images, labels = pictures(bag, for_test, count, task.look, 2 * task.number, side)
    seeds, _ = pictures(bag, for_seeds, SEED_IMAGES, task.look, 2 * task.number + 1, side)
    known = {image.numpy().tobytes() for image in images}
    if any(image.numpy().tobytes() in known for image in seeds):
        raise ConfigError(f"task {task.name!r}: a seed image equals a test image; give it more sources")
    store({"test_images": images, "test_labels": labels.to(torch.int64), "seed_images": seeds}, target)


def write_train(bag: Bag, task: Task, target: Path, side: int = IMAGE_SIZE) -> None:
    """Class-balanced labelled images from the training side, augmented as fine-tuning does."""
    gen, classes = generator(15, task.number), len(task.classes)
    labels = (torch.arange(TRAIN_IMAGES) % classes)[torch.randperm(TRAIN_IMAGES, generator=gen)]
    images = as_bytes(TrainingSide.of(bag, task.look, side).draw(labels, 1.0, gen))
    store({"train_images": images, "train_labels": labels}, target)


def store(tensors: dict[str, Tensor], target: Path) -> None:
    """Writes tensors so that a kill leaves no half-written file under the final name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    save_file(tensors, partial)
    partial.replace(target)
