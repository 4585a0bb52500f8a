"""Fine-tuning of a transformers classifier: how its head begins, how it and the base score, what is stored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from mingle.suites._build.folder import WorkFolder, write_whole
from mingle.suites._build.training import Schedule, on_device, train
from mingle.weights.source import write_json

RIDGE, SCALE = 0.01, 10.0
Kwargs = dict[str, Tensor]


@dataclass(frozen=True)
class Labelled:
    """Samples as arguments of a model, in batches, and the labels (N,) of all of them."""

    batches: Sequence[Kwargs]
    labels: Tensor


@dataclass(frozen=True)
class Finetuning:
    """One task. ``open_model`` opens the base with an untrained head, ``heads`` names the head's modules.

    ``begin``: training samples that the head's last Linear, ``classifier``, begins with. ``loss``: of a model
    at a step. ``wrap``: makes of the opened model the one that is trained.
    """

    open_model: Callable[[], Any]
    heads: tuple[str, ...]
    begin: Labelled
    test: Labelled
    loss: Callable[[Any, int], Tensor]
    schedule: Schedule
    wrap: Callable[[Any], Any] = lambda model: model


def finetune(place: WorkFolder, name: str, tuning: Finetuning, write: Callable[[Any, Path], None]) -> None:
    """From the base to ``place.model(name)``: what ``write`` stores of the model, and ``accuracy.json``."""
    model, state_file = on_device(tuning.open_model()), place.state(name)
    begin_head(model.classifier, features(model, model.classifier, tuning.begin.batches), tuning.begin.labels)
    trained = tuning.wrap(model).to(model.device)  # what was added to it too
    train(trained, lambda step: tuning.loss(trained, step), tuning.schedule, state_file)
    base = on_device(tuning.open_model())
    for head in tuning.heads:
        base.get_submodule(head).load_state_dict(_own(model.get_submodule(head)).state_dict())
    scores = {"base": accuracy(base, tuning.test), "individual": accuracy(trained, tuning.test)}

    def fill(folder: Path) -> None:
        write(trained, folder)
        write_json(folder / "accuracy.json", scores)

    write_whole(place.model(name), fill)
    state_file.unlink()


def _own(module: nn.Module) -> nn.Module:
    """The trained copy of a module that PEFT keeps beside the adapter."""
    copies = getattr(module, "modules_to_save", None)
    return module if copies is None else copies["default"]


@torch.no_grad()
def begin_head(head: nn.Linear, rows: Tensor, labels: Tensor) -> None:
    """Sets a head to SCALE times the ridge regression of one-hot labels (N,) on features (N, d).

    W = (F̃ᵀF̃/N + ρ·mean(diag)·I)⁻¹ F̃ᵀỸ/N, with centred F̃ and Ỹ, ρ = RIDGE, in float64.
    """
    answers = one_hot(labels, head.out_features).double()
    middle, prior = rows.double().mean(0), answers.mean(0)
    centred = rows.double() - middle
    moment = centred.T @ centred / len(rows)
    ridge = RIDGE * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype)
    weight = torch.linalg.solve(moment + ridge, centred.T @ (answers - prior) / len(rows)).T
    head.weight.copy_(SCALE * weight)
    head.bias.copy_(SCALE * (prior - weight @ middle))


@torch.no_grad()
def features(model: nn.Module, head: nn.Linear, batches: Sequence[Kwargs]) -> Tensor:
    """What the head of a model reads: (N, d)."""
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].cpu()))
    try:
        for batch in batches:
            model(**batch)
    finally:
        hook.remove()
    return torch.cat(seen)


@torch.no_grad()
def accuracy(model: nn.Module, samples: Labelled) -> float:
    """Share of samples whose largest logit is that of their label."""
    guesses = torch.cat([model(**batch).logits.argmax(-1) for batch in samples.batches])
    return round((guesses == samples.labels).float().mean().item(), 4)


def open_classifier(auto_class: str, folder: Path, classes: Sequence[str]) -> Any:  # noqa: ANN401
    """A base with an untrained head for these classes, in float32 and without dropout."""
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # that the head is new is no news
    names = dict(enumerate(classes))
    model = getattr(transformers, auto_class).from_pretrained(
        folder,
        local_files_only=True,
        dtype=torch.float32,
        id2label=names,
        label2id={name: label for label, name in names.items()},
        ignore_mismatched_sizes=True,
    )
    return model.eval()
