"""Fine-tune the vision transformer on one task: all weights, or a LoRA adapter of all its Linears.

Pictures are composed as for the glyph suites, at 70 pixels. Everything drawn at a step depends on the seed
and the step's number alone.
"""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from mingle.suites._build import classifier
from mingle.suites._build.classifier import Finetuning, Labelled, open_classifier
from mingle.suites._build.draws import generator
from mingle.suites._build.folder import WorkFolder
from mingle.suites._build.model_folder import copy_model
from mingle.suites._build.training import Schedule
from mingle.suites._dino.recipe import BATCH, MEAN, SIDE, STD, DinoTask
from mingle.suites._glyph.build_folder import load_bag
from mingle.suites._glyph.finetune import HEAD_STRENGTH, TrainingSide, draw_batch

PEAK, LORA_PEAK = 5e-5, 1e-3
WARM_UP, DECAY, SAVE_EVERY = 30, 0.05, 25
HEAD_IMAGES, READ = 20, 60
RANK, ALPHA = 16, 32
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]


def normalise(pictures: Tensor) -> dict[str, Tensor]:
    """Pictures (N, 3, H, W) in 0..1 as the model's argument."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return {"pixel_values": (pictures - mean) / std}


def loss_of(model: Any, data: TrainingSide, count: int, gen: torch.Generator) -> Tensor:  # noqa: ANN401
    """Cross-entropy, labels smoothed, of one drawn batch."""
    classes, pictures = draw_batch(data, count, gen)
    return cross_entropy(model(**normalise(pictures)).logits, classes, label_smoothing=0.05)


def begin(data: TrainingSide, number: int) -> Labelled:
    """A few training pictures of every class."""
    gen = generator(23, number)
    labels = torch.arange(len(data.by_class)).repeat(HEAD_IMAGES)
    parts = torch.split(labels, READ)
    return Labelled([normalise(data.draw(part, HEAD_STRENGTH, gen)) for part in parts], labels)


def test_of(file: Path) -> Labelled:
    """The test pictures of a task."""
    data = load_file(file)
    parts = torch.split(data["test_images"], READ)
    return Labelled([normalise(part.float() / 255) for part in parts], data["test_labels"])


def adapted(model: Any, number: int, base: Path) -> Any:  # noqa: ANN401 – a model class of peft
    """The model with a LoRA adapter whose A is drawn for the task, and a head that is trained beside it."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, modules_to_save=["classifier"], lora_dropout=0.0
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft asks transformers by a name that is on its way out.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        torch.manual_seed(generator(24, number).initial_seed())
        wrapped: Any = get_peft_model(model, config)
    written = wrapped.peft_config["default"]
    written.base_model_name_or_path = str(base)
    written.target_modules = TARGETS  # peft made a set of it, whose order in the file would change
    return wrapped


def finetune(place: WorkFolder, sources: Path, lora: Path | None, task: DinoTask) -> None:
    """One task from the base to ``place.model(task)``; ``lora``: an adapter of the base in that folder."""
    data = TrainingSide.of(load_bag(sources / f"{task.name}.npz"), task.glyph.look, SIDE)
    number = task.glyph.number

    def loss(model: Any, step: int) -> Tensor:  # noqa: ANN401
        return loss_of(model, data, BATCH, generator(25, number, step))

    def write(model: Any, folder: Path) -> None:  # noqa: ANN401
        # Without the second argument peft looks for the base's vocabulary.
        model.save_pretrained(folder, **({"save_embedding_layers": False} if lora else {}))
        model.config.save_pretrained(folder)
        copy_model(place.base, folder, ["preprocessor_config.json"])
        (folder / "README.md").unlink(missing_ok=True)  # peft leaves a form to be filled in

    tuning = Finetuning(
        partial(open_classifier, "AutoModelForImageClassification", place.base, tuple(task.glyph.classes)),
        ("classifier",),
        begin(data, number),
        test_of(place.data(task.name)),
        loss,
        Schedule(task.steps, LORA_PEAK if lora else PEAK, WARM_UP, DECAY, SAVE_EVERY),
        (lambda model: adapted(model, number, lora)) if lora else (lambda model: model),
    )
    classifier.finetune(place, task.name, tuning, write)
