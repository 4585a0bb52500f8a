"""Fine-tune the shipped base on one task: the whole vision tower, with a class head that never changes.

The head's rows are the normalised class means of the base's image embeddings of training images. The visual
projection keeps the base's value, so that models differ in the encoder alone. Everything drawn at a step
depends on the seed and the step's number alone: a training continued after a kill gives the same bits.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.functional import normalize as unit

from mingle.suites._build.draws import generator
from mingle.suites._build.folder import write_whole
from mingle.suites._build.training import Schedule, train
from mingle.suites._glyph.augment import compose, erase, normalise
from mingle.suites._glyph.build_folder import Bag, BuildFolder, load_bag
from mingle.suites._glyph.recipe import IMAGE_SIZE, Task
from mingle.suites._glyph.tower import LOGIT_SCALE, embed, load_tower
from mingle.weights.source import write_json

BATCH, PEAK, WARM_UP, DECAY, SAVE_EVERY = 64, 5e-4, 100, 0.05, 50
HEAD_IMAGES = 200  # augmented training images per class that a head's row averages
HEAD_STRENGTH = 0.6


@dataclass(frozen=True)
class TrainingSide:
    """The sources of a task that are not held out, with the indices of each class."""

    rgba: Tensor
    mono: Tensor
    by_class: list[Tensor]
    look: str
    side: int = IMAGE_SIZE

    @classmethod
    def of(cls, bag: Bag, look: str, side: int = IMAGE_SIZE) -> "TrainingSide":
        """Everything that is not held out."""
        keep = torch.from_numpy(~bag["held"])
        labels = torch.from_numpy(bag["labels"])[keep]
        by_class = [torch.nonzero(labels == label).flatten() for label in range(int(labels.max()) + 1)]
        rgba, mono = (torch.from_numpy(bag[name])[keep] for name in ("rgba", "mono"))
        return cls(rgba, mono, by_class, look, side)

    def draw(self, classes: Tensor, strength: float, gen: torch.Generator) -> Tensor:
        """One augmented picture (3, side, side) in 0..1 for each wanted class."""
        pools = [self.by_class[label] for label in classes.tolist()]
        index = torch.cat([pool[torch.randint(len(pool), (1,), generator=gen)] for pool in pools])
        return compose(self.rgba[index], self.mono[index], self.look, strength, gen, self.side)


def class_head(base: nn.Module, data: TrainingSide, number: int) -> Tensor:
    """Normalised class means (C, d) of the base's embeddings; ``number`` salts the draws."""
    gen = generator(8, number)
    means = [
        embed(base, data.draw(torch.full((HEAD_IMAGES,), label), HEAD_STRENGTH, gen)).mean(0)
        for label in range(len(data.by_class))
    ]
    return unit(torch.stack(means), dim=1)


def draw_batch(data: TrainingSide, count: int, gen: torch.Generator) -> tuple[Tensor, Tensor]:
    """Labels (B,) drawn uniformly, and a picture in 0..1 of each, parts of some hidden."""
    classes = torch.randint(len(data.by_class), (count,), generator=gen)
    hidden = 0.0 if data.look.startswith("gray") else 0.15
    return classes, erase(data.draw(classes, 1.0, gen), hidden, gen)


def train_step(model: nn.Module, head: Tensor, data: TrainingSide, gen: torch.Generator) -> Tensor:
    """The loss of one drawn batch: cross-entropy, labels smoothed, of scaled cosines to the class head."""
    classes, pictures = draw_batch(data, BATCH, gen)
    rows = unit(model(pixel_values=normalise(pictures)).image_embeds, dim=1)
    return cross_entropy(LOGIT_SCALE * rows @ head.T, classes, label_smoothing=0.05)


def finetune(place: BuildFolder, task: Task, base: Path) -> None:
    """One task from the base to ``place.model(task)``: model in fp16, config with class names, head."""
    target = place.model(task.name)
    if target.exists():
        return
    data = TrainingSide.of(load_bag(place.sources(task.name)), task.look)
    model, state_file = load_tower(base), place.state(task.name)
    head = class_head(model, data, task.number)
    model.visual_projection.requires_grad_(False)
    model.train()
    schedule = Schedule(task.steps, PEAK, WARM_UP, DECAY, SAVE_EVERY)
    train(
        model,
        lambda step: train_step(model, head, data, generator(9, task.number, step)),
        schedule,
        state_file,
    )
    write_whole(target, lambda folder: store(model, head, task, base, folder))
    state_file.unlink()


def store(model: nn.Module, head: Tensor, task: Task, base: Path, folder: Path) -> None:
    """Model in fp16, head, and the base's configuration with the names of the classes."""
    half = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(half, folder / "model.safetensors", {"format": "pt"})
    scale = torch.tensor(LOGIT_SCALE)
    save_file({"class_embeddings": head, "logit_scale": scale}, folder / "head.safetensors")
    config = json.loads((base / "config.json").read_text("utf-8"))
    config["id2label"] = {str(label): name for label, name in enumerate(task.classes)}
    config["label2id"] = {name: label for label, name in enumerate(task.classes)}
    write_json(folder / "config.json", config)
