"""Fine-tuning that goes on after a kill with the same bits: what a step draws depends on its number alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mingle.suites._build.training_state import load_state, save_state


@dataclass(frozen=True)
class Schedule:
    """Steps, highest learning rate, steps of warm-up, weight decay, and how often the state is stored."""

    steps: int
    peak: float
    warm_up: int
    decay: float
    save_every: int


def device() -> torch.device:
    """The first GPU that torch sees, or else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def on_device(model: nn.Module) -> Any:  # noqa: ANN401 – a model class of transformers
    """The model on the GPU where there is one; it takes arguments of the CPU and gives logits back there."""
    there = device()
    if there.type == "cpu":
        return model

    def send(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:  # noqa: ANN401
        return args, {name: tensor.to(there) for name, tensor in kwargs.items()}

    def bring_back(_: nn.Module, args: Any, output: Any) -> None:  # noqa: ANN401
        output.logits = output.logits.cpu()

    model.register_forward_pre_hook(send, with_kwargs=True)
    model.register_forward_hook(bring_back)
    return model.to(there)


def cosine(step: int, steps: int, peak: float, warm_up: int) -> float:
    """The learning rate at a step: linear warm-up, then a cosine down to one hundredth of the peak."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    share = (step - warm_up) / max(1, steps - warm_up)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))


def groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Trainable parameters for an optimiser; weight decay for matrices alone."""
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    return [
        {"params": [w for w in trainable if w.ndim > 1], "weight_decay": decay},
        {"params": [w for w in trainable if w.ndim <= 1], "weight_decay": 0.0},
    ]


def train(model: nn.Module, loss: Callable[[int], Tensor], schedule: Schedule, state_file: Path) -> None:
    """AdamW on ``loss(step)`` to the last step, continuing from the stored state where there is one."""
    state_file.parent.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(groups(model, schedule.decay), lr=schedule.peak, fused=True)
    for step in range(load_state(state_file, model, optimizer), schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, schedule.steps, schedule.peak, schedule.warm_up)
        loss(step).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % schedule.save_every == 0 or step + 1 == schedule.steps:
            save_state(state_file, model, optimizer, step + 1)
