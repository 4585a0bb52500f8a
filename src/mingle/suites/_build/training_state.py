"""What an interrupted training continues from, in one safetensors file."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn


def save_state(file: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Stores weights and optimiser after ``step`` steps; a kill in the middle leaves the state before."""
    content = optimizer.state_dict()
    tensors = {f"model.{name}": value.cpu() for name, value in model.state_dict().items()}
    for index, entry in content["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value.cpu() for key, value in entry.items()}
    partial = file.with_suffix(".partial")
    save_file(tensors, partial, {"step": str(step), "groups": json.dumps(content["param_groups"])})
    partial.replace(file)


def stored_step(file: Path) -> int:
    """The number of steps already done: 0 where nothing is stored."""
    try:
        with safe_open(file, "pt") as stored:
            return int(stored.metadata()["step"])
    except FileNotFoundError:  # asking first would race with the process that trains
        return 0


def load_state(file: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Continues from a stored state where there is one; returns the number of steps already done."""
    if not file.exists():
        return 0
    with safe_open(file, "pt") as stored:
        metadata = stored.metadata()
    weights, state = {}, dict[int, dict[str, torch.Tensor]]()
    for name, value in load_file(file).items():
        kind, _, rest = name.partition(".")
        if kind == "model":
            weights[rest] = value
        else:
            index, _, key = rest.partition(".")
            state.setdefault(int(index), {})[key] = value
    model.load_state_dict(weights)
    optimizer.load_state_dict({"state": state, "param_groups": json.loads(metadata["groups"])})
    return int(metadata["step"])
