"""Train the base: follow the teacher's features and tell the names of the base's own images apart.

Everything drawn at a step depends on the step's number alone, so a run continued after a kill draws the same.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPVisionModelWithProjection

from common import base_images, base_model, parser, timed
from mingle.suites._build.draws import generator
from mingle.suites._build.training import cosine, groups
from mingle.suites._build.training_state import load_state, save_state
from mingle.suites._glyph.augment import compose, erase, normalise
from mingle.suites._glyph.build_folder import BuildFolder, load_bag
from mingle.suites._glyph.recipe import recipe
from model import new_model, save_half
from names import allowed

BATCH, PEAK, WARM_UP, DECAY = 128, 1.5e-3, 100, 0.05
TARGET, SCALE, SAVE_EVERY = 256, 16.0, 250
EASY_SHARE = 0.7  # over this share of the steps the easy pictures fade out and the names' loss fades in
LOOKS = ("colour", "colour", "glyph", "glyph", "clutter", "gray")


@dataclass
class Data:
    """The base's images with their names; `target` has zero rows where an image has no teacher feature."""

    rgba: Tensor
    mono: Tensor
    labels: Tensor
    target: Tensor
    names: int


class Student(nn.Module):
    """The tower with the two heads that only pretraining uses."""

    def __init__(self, names: int) -> None:
        super().__init__()
        self.tower: CLIPVisionModelWithProjection = new_model()
        self.follow = nn.Linear(self.tower.config.projection_dim, TARGET)
        self.names = nn.Parameter(torch.randn(names, self.tower.config.projection_dim) * 0.05)

    def loss(self, pictures: Tensor, labels: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Distance to the teacher's features, and cross-entropy of the names."""
        rows = self.tower(pixel_values=normalise(pictures)).image_embeds
        known = target.norm(dim=1) > 0
        distance = 1 - functional.cosine_similarity(self.follow(rows[known]), target[known], dim=1).mean()
        logits = SCALE * functional.normalize(rows, dim=1) @ functional.normalize(self.names, dim=1).T
        return distance, functional.cross_entropy(logits, labels, label_smoothing=0.05)


def strongest(features: Tensor) -> Tensor:
    """Centre the teacher's features and keep the strongest directions; whitening slows the start."""
    centred = features - features.mean(0)
    vectors = torch.linalg.eigh(centred.T @ centred / len(centred)).eigenvectors[:, -TARGET:]
    return functional.normalize(centred @ vectors, dim=1)


def load_data(place: BuildFolder) -> Data:
    """Images of names that occur often enough, and the teacher's features of those that have one.

    The names are checked again here, so that a stricter list needs no new rendering.
    """
    bag, known = load_bag(base_images(place)), load_bag(place.work / "teacher" / "features.npz")
    keep = allowed(bag, recipe())
    names, labels = np.unique(bag["labels"][keep], return_inverse=True)
    target = torch.zeros(len(bag["labels"]), TARGET)
    usable = np.isin(known["index"], keep)
    rows = strongest(torch.from_numpy(known["features"][usable]).float())
    target[torch.from_numpy(known["index"][usable])] = rows
    return Data(
        torch.from_numpy(bag["rgba"][keep]),
        torch.from_numpy(bag["mono"][keep]),
        torch.from_numpy(labels),
        target[torch.from_numpy(keep)],
        len(names),
    )


class Batches(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """The pictures, names and targets of every step; the first steps show white shapes on black."""

    def __init__(self, data: Data, first: int, steps: int) -> None:
        self.data, self.first, self.steps = data, first, steps

    def __len__(self) -> int:
        return self.steps - self.first

    def __getitem__(self, offset: int) -> tuple[Tensor, Tensor, Tensor]:
        step, data = self.first + offset, self.data
        gen = generator(7, step)
        index = torch.randint(len(data.labels), (BATCH,), generator=gen)
        look = LOOKS[int(torch.randint(len(LOOKS), (1,), generator=gen))]
        easy = torch.rand(1, generator=gen).item() > step / (EASY_SHARE * self.steps)
        pictures = compose(
            data.rgba[index], data.mono[index], "gray" if easy else look, 0.5 if easy else 1.0, gen
        )
        return pictures if easy else erase(pictures, 0.2, gen), data.labels[index], data.target[index]


def train(student: Student, data: Data, steps: int, state_file: Path) -> None:
    """Train to the last step, continuing from the saved state where there is one."""
    optimizer = torch.optim.AdamW(groups(student, DECAY), lr=PEAK, betas=(0.9, 0.98), fused=True)
    first = load_state(state_file, student, optimizer)
    if first >= steps:
        return  # this round was done before a kill
    start, sums = time.perf_counter(), torch.zeros(3)
    loader = DataLoader(Batches(data, first, steps), batch_size=None, num_workers=1, prefetch_factor=8)
    for step, (pictures, labels, target) in enumerate(loader, first):
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, steps, PEAK, WARM_UP)
        distance, naming = student.loss(pictures, labels, target)
        (2 * distance + 0.3 * min(1.0, step / (EASY_SHARE * steps)) * naming).backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        sums += torch.tensor([distance.item(), naming.item(), 1.0])
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            rate = (step + 1 - first) * BATCH / (time.perf_counter() - start)
            mean = (sums / sums[2]).tolist()
            print(
                f"step {step + 1} of {steps}: distance {mean[0]:.3f}, names {mean[1]:.3f}, {rate:.0f}/s",
                flush=True,
            )
            sums.zero_()
            save_state(state_file, student, optimizer, step + 1)


def main() -> None:
    """Train the base unless it is there already."""
    args = parser(__doc__ or "")
    args.add_argument(
        "--steps",
        type=int,
        nargs="+",
        default=[1300, 2000, 3300],
        help="last step of each round; the rate restarts",
    )
    options = args.parse_args()
    folder = base_model(options.cache)
    if (folder / "model.safetensors").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    torch.manual_seed(0)
    data = load_data(options.cache)
    print(
        f"{len(data.labels)} images, {data.names} names, "
        f"{int((data.target.norm(dim=1) > 0).sum())} with a teacher feature"
    )
    student = Student(data.names)
    with timed("pretrain"):
        for last in options.steps:
            train(student, data, last, options.cache.state("base"))
    save_half(student.tower, folder)


if __name__ == "__main__":
    main()
