"""``adapter_config.json`` of a PEFT adapter: what the weights mean, and whether they can be represented.

A setting that is not known here, and is set, is refused by name, so that an adapter of a newer kind is never
read as if it were plain LoRA.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from mingle.errors import CheckpointError
from mingle.weights.source import read_json

ADAPTER_CONFIG = "adapter_config.json"

UNCHANGED_BASE = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Initialisations that leave the base as it is; the others (PiSSA, OLoRA, CorDA, …) change its weights."""

Number = TypeVar("Number", int, float)

READ = (
    *("peft_type", "base_model_name_or_path", "init_lora_weights", "r", "lora_alpha", "use_rslora"),
    *("rank_pattern", "alpha_pattern", "use_dora", "fan_in_fan_out", "lora_bias"),
)
WITHOUT_EFFECT = (
    # Where the adapter comes from, which modules it was put on (the file has them), and how it was trained.
    *("revision", "task_type", "inference_mode", "auto_mapping", "peft_version", "runtime_config"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *(
        "modules_to_save",
        "bias",
        "lora_dropout",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "loftq_config",
    ),
    # Settings of features that have a switch of their own, at values that are never empty.
    *("megatron_core", "qalora_group_size"),
)
REPEATS = re.compile(r"[*+{]")
REPEATED_GROUP = re.compile(r"\)[*+{]")
MOST_REPEATS = 4
WAY_OUT = "merge it into its base with PEFT's merge_and_unload(), and pass the model that this saves"


@dataclass(frozen=True)
class LoraSettings:
    """The settings that change what the weights mean."""

    base: str
    rank: int
    alpha: float
    rank_stabilised: bool
    ranks: Mapping[re.Pattern[str], int]
    alphas: Mapping[re.Pattern[str], float]
    magnitudes: bool
    transposed: bool
    biased: bool

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises CheckpointError for another kind of adapter, a feature or a value that is not known."""
        values = read_json(path)
        kind = values.get("peft_type")
        if kind != "LORA":
            raise CheckpointError(f"{path}: expected peft_type 'LORA', found {kind!r}; {WAY_OUT}")
        unknown = sorted(k for k, v in values.items() if v and k not in (*READ, *WITHOUT_EFFECT))
        if values.get("lora_bias") and values.get("use_dora"):
            unknown.append("lora_bias together with use_dora")
        if unknown:
            raise CheckpointError(
                f"{path}: {', '.join(unknown)}: not representable as exact changes of the "
                f"base's tensors; {WAY_OUT}"
            )
        started = values.get("init_lora_weights")
        if started not in UNCHANGED_BASE:
            raise CheckpointError(
                f"{path}: init_lora_weights {started!r} changed the base too; save it again as plain "
                "LoRA with save_pretrained(..., path_initial_model_for_weight_conversion=...)"
            )
        try:
            return cls(
                str(values.get("base_model_name_or_path") or "not named"),
                int(values.get("r", 8)),
                float(values.get("lora_alpha", 8)),
                bool(values.get("use_rslora")),
                _by_module(values.get("rank_pattern"), int),
                _by_module(values.get("alpha_pattern"), float),
                bool(values.get("use_dora")),
                bool(values.get("fan_in_fan_out")),
                bool(values.get("lora_bias")),
            )
        except (TypeError, ValueError, AttributeError, OverflowError, RecursionError, re.error) as error:
            raise CheckpointError(
                f"{path}: r, lora_alpha, rank_pattern and alpha_pattern: expected numbers, or numbers by "
                f"regular expression of the module's name ({error})"
            ) from error

    def rank_of(self, module: str) -> int:
        """Rank of a module, by the first pattern that its name ends in."""
        return _matching(self.ranks, module, self.rank)

    def scale(self, module: str, rank: int) -> float:
        """``α / r``, rank-stabilised ``α / √r``."""
        alpha = _matching(self.alphas, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def _by_module(values: Any, kind: type[Number]) -> dict[re.Pattern[str], Number]:  # noqa: ANN401 – of a file
    return {re.compile(rf"(?:.*\.)?(?:{_quick(p)})$"): kind(v) for p, v in (values or {}).items()}


def _quick(pattern: str) -> str:
    """Refuses a pattern that can take for ever on a long name. Raises ValueError."""
    if len(REPEATS.findall(pattern)) > MOST_REPEATS or REPEATED_GROUP.search(pattern):
        raise ValueError(f"{pattern!r:.80} repeats too much")
    return pattern


def _matching(patterns: Mapping[re.Pattern[str], Number], module: str, default: Number) -> Number:
    return next((v for p, v in patterns.items() if p.match(module)), default)
