"""Write the suite folder: test and seed images, models, what they score, model card and licences."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPImageProcessorPil

from augment import compose
from card import model_card, write_licences
from common import IMAGE_SIZE, SEED, SUITE, Bag, generator, load_bag, parser, tasks_file, timed
from model import accuracy, load_model

TEST_IMAGES, SEED_IMAGES, STRENGTH = 360, 150, 0.6
FEW = 20  # a class with fewer held-out sources than this shares them between test and seed images


def sources(bag: Bag, rng: np.random.Generator, classes: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Held-out sources of each class for test and for seed images: two parts where there are enough."""
    for_test, for_seeds = [], []
    for label in range(classes):
        index = rng.permutation(np.flatnonzero(bag["held"] & (bag["labels"] == label)))
        cut = len(index) if len(index) < FEW else int(len(index) * 0.7)
        for_test.append(index[:cut])
        for_seeds.append(index if len(index) < FEW else index[cut:])
    return for_test, for_seeds


def pictures(bag: Bag, pools: list[np.ndarray], count: int, look: str, key: int) -> tuple[Tensor, Tensor]:
    """`count` class-balanced pictures, each class walking through its own sources, as uint8 with labels."""
    labels = torch.arange(count) % len(pools)
    index = np.array(
        [
            pools[label][(number // len(pools)) % len(pools[label])]
            for number, label in enumerate(labels.tolist())
        ]
    )
    order = torch.randperm(count, generator=generator(12, key))
    index, labels = index[order.numpy()], labels[order]
    rgba, mono = torch.from_numpy(bag["rgba"][index]), torch.from_numpy(bag["mono"][index])
    strength = 0.0 if look.startswith("gray") else STRENGTH
    images = compose(rgba, mono, look, strength, generator(10, key))
    return (images * 255).round().to(torch.uint8), labels


def write_data(cache: Path, task: str, salt: int, look: str, classes: int, target: Path) -> None:
    """The shipped images of one task. Seeds come without labels, and no seed equals a test image."""
    bag = load_bag(cache / "sources" / f"{task}.npz")
    for_test, for_seeds = sources(bag, np.random.default_rng([SEED, 11, salt]), classes)
    count = TEST_IMAGES - TEST_IMAGES % classes
    test_images, test_labels = pictures(bag, for_test, count, look, 2 * salt)
    seeds, _ = pictures(bag, for_seeds, SEED_IMAGES, look, 2 * salt + 1)
    known = {image.numpy().tobytes() for image in test_images}
    if any(image.numpy().tobytes() in known for image in seeds):
        raise SystemExit(f"{task}: a seed image equals a test image")
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            "test_images": test_images.contiguous(),
            "test_labels": test_labels.to(torch.int64),
            "seed_images": seeds.contiguous(),
        },
        target,
    )


def write_preprocessor(folder: Path) -> None:
    """CLIP's preprocessing for 32 x 32 images."""
    CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_resize=True,
        resample=3,
        do_center_crop=True,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        do_convert_rgb=True,
    ).save_pretrained(folder)


def measure(tasks: list[str], suite: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Accuracy of the base and of each individual model on the shipped tests, from the shipped files."""
    base, alone, individual = load_model(suite / "base"), {}, {}
    for task in tasks:
        data = load_file(suite / "data" / f"{task}.safetensors")
        head = load_file(suite / task / "head.safetensors")["class_embeddings"]
        alone[task] = round(accuracy(base, head, data["test_images"], data["test_labels"]), 4)
        individual[task] = round(
            accuracy(load_model(suite / task), head, data["test_images"], data["test_labels"]), 4
        )
        print(f"{task:15s} base {alone[task]:.3f}  individual {individual[task]:.3f}", flush=True)
    return alone, individual


def main() -> None:
    """Package one run."""
    args = parser(__doc__ or "")
    args.add_argument("--run", default="final", help="name of the folder of results under the cache")
    args.add_argument("--suite", type=Path, default=SUITE, help="the folder to write")
    options = args.parse_args()
    spec, suite, run = tasks_file(), options.suite, options.cache / "runs" / options.run
    torch.set_num_threads(2)
    for name in ["base", *spec["glyph8"]]:
        shutil.copytree(run / name, suite / name, dirs_exist_ok=True)
    write_preprocessor(suite / "base")
    with timed("write images"):
        for task in spec["glyph8"]:
            entry, salt = spec["tasks"][task], list(spec["tasks"]).index(task)
            write_data(
                options.cache,
                task,
                salt,
                entry["look"],
                len(entry["classes"]),
                suite / "data" / f"{task}.safetensors",
            )
    with timed("measure"):
        alone, individual = measure(spec["glyph8"], suite)
    content = {
        "name": "glyph8",
        "schema": 1,
        "backbone": "clip",
        "tasks": spec["glyph8"],
        "base": "base",
        "base_accuracy": alone,
        "individual_accuracy": individual,
    }
    (suite / "suite.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    means = [sum(values.values()) / len(values) for values in (alone, individual)]
    size = sum(path.stat().st_size for path in suite.rglob("*") if path.is_file()) / 2**20
    print(f"mean: base {means[0]:.3f}, individual {means[1]:.3f}; {size:.1f} MiB", flush=True)
    write_licences(options.cache, spec, suite)
    model_card(options.cache, spec, suite, content)
    for path in suite.rglob("*.safetensors"):
        path.chmod(0o644)


if __name__ == "__main__":
    main()
