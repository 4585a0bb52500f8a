"""Where a finished model computes, and how precisely: accelerate's device maps, and half precision.

Gates decide in float32 whatever the rest is in: a mean over tokens in half precision has three digits.
"""

import math
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import torch
from torch import Tensor, nn

from mingle.errors import ConfigError
from mingle.layers.closed_form import ClosedFormRouter
from mingle.layers.surgery import mixtures, select_experts

HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Placement:
    """``dtype``: of weights and experts, half or float32; None leaves it. Inputs and outputs stay float32.

    ``device_map``, ``max_memory``, ``offload_folder``: as in transformers' from_pretrained – ``auto``, a
    device, or a device (also ``cpu`` or ``disk``) for every part of the model. None: nothing is moved.

    ``strongest``, ``gate_threshold``: in every merged Linear a sample uses only so many experts, those with
    the largest ``|g_i|``, and none with ``|g_i|`` below the threshold; faster, and not the same predictions.
    None: what the run's options say, by default all of them.

    Raises ConfigError for another dtype, no expert at all, or a threshold that is none.
    """

    dtype: torch.dtype | None = None
    device_map: str | Mapping[str, int | str] | None = None
    max_memory: Mapping[int | str, int | str] | None = None
    offload_folder: str | Path | None = None
    strongest: int | None = None
    gate_threshold: float | None = None

    def __post_init__(self) -> None:
        if self.dtype not in (None, *HALF, torch.float32):
            raise ConfigError(f"dtype: expected bfloat16, float16 or float32, found {self.dtype}")
        if self.strongest is not None and self.strongest < 1:
            raise ConfigError(f"strongest: expected at least 1 expert, found {self.strongest}")
        if self.gate_threshold is not None and not 0 <= self.gate_threshold < math.inf:
            raise ConfigError(f"gate_threshold: expected a number from 0 on, found {self.gate_threshold}")

    def place(self, model: nn.Module) -> nn.Module:
        """A model built in ``dtype``, changed in place. Raises ConfigError for a map that cannot be."""
        layers = [layer for _, layer in mixtures(model)]
        given = {"strongest": self.strongest, "threshold": self.gate_threshold}
        changes: Any = {name: value for name, value in given.items() if value is not None}
        if layers and changes:
            select_experts(model, replace(layers[0].selection, **changes))
        if self.dtype in HALF:
            model.register_forward_pre_hook(_halve(self.dtype), with_kwargs=True)
            model.register_forward_hook(_widen)
        return model if self.device_map is None else self._dispatch(model)

    def _dispatch(self, model: nn.Module) -> nn.Module:
        from accelerate import dispatch_model, infer_auto_device_map

        found: dict[str, int | str] = {}
        if isinstance(self.device_map, str):
            # Only parts of a model can be on disk.
            parts = [name for name, _ in model.named_children()] if self.device_map == "disk" else [""]
            found = dict.fromkeys(parts, self.device_map)
        elif self.device_map is not None:
            found = _with_routers(model, dict(self.device_map))
        if self.device_map == "auto":
            whole = list(getattr(model, "_no_split_modules", None) or ())
            limits: Any = None if self.max_memory is None else dict(self.max_memory)
            found = infer_auto_device_map(model, limits, no_split_module_classes=whole)
        folder = None
        if "disk" in found.values():
            if self.offload_folder is None:
                raise ConfigError("device_map: parts of the model go to disk; pass offload_folder for them")
            # A folder of its own: accelerate would take the weights of an earlier model that it finds there.
            Path(self.offload_folder).mkdir(parents=True, exist_ok=True)
            folder = mkdtemp(prefix="mingle-", dir=self.offload_folder)
            weakref.finalize(model, rmtree, folder, ignore_errors=True)
        try:
            # Experts are buffers, and most of what a merged model adds.
            placed: nn.Module = dispatch_model(
                model, found, offload_dir=folder, offload_buffers=True, force_hooks=True
            )
        except (ValueError, RuntimeError, AssertionError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"device_map: not possible for this model ({reason})") from error
        return placed


def _with_routers(model: nn.Module, placed: dict[str, int | str]) -> dict[str, int | str]:
    """A map by names of the base model, and where routers go that it does not know: beside the first part."""
    first = next((device for device in placed.values() if device != "disk"), "cpu")
    for name, module in model.named_modules():
        parts = name.split(".")
        above = (".".join(parts[:end]) for end in range(len(parts) + 1))
        if isinstance(module, ClosedFormRouter) and not any(prefix in placed for prefix in above):
            placed[name] = first
    return placed


def kept_wide(model: nn.Module, dtype: torch.dtype) -> set[str]:
    """Names of modules and parameters that transformers itself never loads in this precision."""
    if dtype not in HALF:
        return set()
    names = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    return names | set((dtype == torch.float16 and getattr(model, "_keep_in_fp32_modules", None)) or ())


def _halve(dtype: torch.dtype) -> Any:  # noqa: ANN401 – a forward pre-hook
    def turn(value: object) -> object:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return tuple(turn(value) for value in args), {name: turn(value) for name, value in kwargs.items()}

    return hook


def _widen(model: nn.Module, args: tuple[Any, ...], output: object) -> object:
    from accelerate.utils import convert_to_fp32

    del model, args
    return convert_to_fp32(output)
