"""The open options of mingle's default, one at a time and together; how the default was chosen."""

from collections.abc import Mapping
from typing import Any

from mingle.benchmark.plan import Contender, Table

WHOLE = {"projection": "none", "vectors": "gated"}
"""Experts that keep all of their task vector: not projected, with biases and LayerNorm vectors."""

VARIANTS: tuple[Mapping[str, Any], ...] = (
    {},
    {"lr": 2.4e-4},
    {"lr": 6e-4},
    {"projection": "none"},
    {"projection": "block+diagonal"},
    {"projection": "complement"},
    {"vectors": "gated"},
    {"gate_init": "normal"},
    {"gate_bias": "free"},
    {"seeds": "teacher"},
    {"gamma": 0.0},
    {"directions": 10},
    WHOLE,
    {**WHOLE, "lr": 6e-4},
    {**WHOLE, "gamma": 0.0, "directions": 10},
)


def _label(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in options.items()) or "as it is"


PLUGIN = Table(
    "Open options of the default",
    tuple(Contender(_label(options), "mingle", options=options) for options in VARIANTS),
    ("acc", "bwt", "fwt", "mixed_acc", "agnostic_acc", "batch_acc", "seconds"),
)
