"""Fine-tune the shipped base on each task: the whole vision tower, with a class head that never changes.

The head's rows are the normalised class means of the base's image embeddings of training images. The visual
projection keeps the base's value, so that models differ in the encoder alone. Resumable like the pretraining.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionModelWithProjection

from augment import compose, erase, normalise
from common import generator, load_bag, parser, tasks_file, timed
from model import LOGIT_SCALE, cosine, embed, groups, load_model, load_state, save_half, save_state

BATCH, PEAK, WARM_UP, DECAY, SAVE_EVERY = 64, 5e-4, 100, 0.05, 250
HEAD_IMAGES = 200  # augmented training images per class that a head's row averages


@dataclass
class Training:
    """The training side of one task's sources, with the indices of each class."""

    rgba: Tensor
    mono: Tensor
    labels: Tensor
    by_class: list[Tensor]
    look: str


def load_training(cache: Path, task: str, look: str) -> Training:
    """Everything that is not held out."""
    bag = load_bag(cache / "sources" / f"{task}.npz")
    keep = torch.from_numpy(~bag["held"])
    labels = torch.from_numpy(bag["labels"])[keep]
    by_class = [torch.nonzero(labels == label).flatten() for label in range(int(labels.max()) + 1)]
    return Training(
        torch.from_numpy(bag["rgba"])[keep], torch.from_numpy(bag["mono"])[keep], labels, by_class, look
    )


def draw(data: Training, classes: Tensor, strength: float, gen: torch.Generator) -> Tensor:
    """One augmented picture for each wanted class."""
    rows = [
        data.by_class[c][torch.randint(len(data.by_class[c]), (1,), generator=gen)] for c in classes.tolist()
    ]
    index = torch.cat(rows)
    return compose(data.rgba[index], data.mono[index], data.look, strength, gen)


def class_head(base: CLIPVisionModelWithProjection, data: Training, salt: int) -> Tensor:
    """Normalised class means of the base's embeddings."""
    gen = generator(8, salt)
    means = [
        embed(base, draw(data, torch.full((HEAD_IMAGES,), label), 0.6, gen)).mean(0)
        for label in range(len(data.by_class))
    ]
    return functional.normalize(torch.stack(means), dim=1)


def train(
    model: CLIPVisionModelWithProjection,
    head: Tensor,
    data: Training,
    steps: int,
    state_file: Path,
    salt: int,
) -> None:
    """Fine-tune to the last step, continuing from the saved state where there is one."""
    model.visual_projection.requires_grad_(False)
    optimizer = torch.optim.AdamW(groups(model, DECAY), lr=PEAK, fused=True)
    first = load_state(state_file, model, optimizer)
    start, losses = time.perf_counter(), list[float]()
    model.train()
    for step in range(first, steps):
        gen = generator(9, salt, step)
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, steps, PEAK, WARM_UP)
        classes = torch.randint(len(data.by_class), (BATCH,), generator=gen)
        pictures = erase(draw(data, classes, 1.0, gen), 0.0 if data.look.startswith("gray") else 0.15, gen)
        rows = functional.normalize(model(pixel_values=normalise(pictures)).image_embeds, dim=1)
        loss = functional.cross_entropy(LOGIT_SCALE * rows @ head.T, classes, label_smoothing=0.05)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            rate = (step + 1 - first) * BATCH / (time.perf_counter() - start)
            print(
                f"  step {step + 1} of {steps}: loss {sum(losses) / len(losses):.3f}, {rate:.0f} images/s",
                flush=True,
            )
            losses.clear()
            save_state(state_file, model, optimizer, step + 1)


def finetune(cache: Path, run: str, task: str, steps: int | None) -> None:
    """One task from the shipped base to the shipped checkpoint."""
    spec = tasks_file()
    folder, entry = cache / "runs" / run, spec["tasks"][task]
    if (folder / task / "model.safetensors").exists():
        return
    salt, data = list(spec["tasks"]).index(task), load_training(cache, task, entry["look"])
    model = load_model(folder / "base")
    (folder / task).mkdir(exist_ok=True)
    head_file = folder / task / "head.safetensors"
    if not head_file.exists():
        rows = class_head(model, data, salt)
        save_file({"class_embeddings": rows, "logit_scale": torch.tensor(LOGIT_SCALE)}, head_file)
    state_file = folder / f"{task}-state.pt"
    with timed(f"fine-tune {task}"):
        train(
            model, load_file(head_file)["class_embeddings"], data, steps or entry["steps"], state_file, salt
        )
    model.config.id2label = dict(enumerate(entry["classes"]))
    model.config.label2id = {name: label for label, name in model.config.id2label.items()}
    save_half(model, folder / task)
    state_file.unlink()


def main() -> None:
    """Fine-tune the tasks that have no checkpoint yet."""
    args = parser(__doc__ or "")
    args.add_argument("--run", default="final", help="name of the folder of results under the cache")
    args.add_argument("--steps", type=int, help="instead of what tasks.yaml says")
    args.add_argument(
        "--threads", type=int, default=2, help="two processes of one thread each are faster than one of two"
    )
    args.add_argument("--tasks", nargs="*", help="task names (default: the eight of the suite)")
    options = args.parse_args()
    torch.set_num_threads(options.threads)
    for task in options.tasks or tasks_file()["glyph8"]:
        finetune(options.cache, options.run, task, options.steps)


if __name__ == "__main__":
    main()
