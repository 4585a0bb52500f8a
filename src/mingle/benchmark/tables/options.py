"""The open options of mingle's default, one at a time and together, at two learning rates."""

from collections.abc import Mapping
from typing import Any

from mingle.benchmark.plan import Contender, Table

WHOLE = {"projection": "none", "vectors": "gated"}
"""Experts that keep all of their task vector: not projected, with biases and LayerNorm vectors."""

CHANGES: tuple[Mapping[str, Any], ...] = (
    {},
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
    {**WHOLE, "gamma": 0.0, "directions": 10},
)


def _rows(lr: float) -> tuple[Contender, ...]:
    every = [{"lr": lr, **change} for change in CHANGES]
    return tuple(
        Contender(", ".join(f"{key} {value}" for key, value in changes.items()), "mingle", "learned", changes)
        for changes in every
    )


PLUGIN = Table(
    "Open options of learned gates",
    (*_rows(1e-4), Contender("lr 0.00024", "mingle", "learned", options={"lr": 2.4e-4}), *_rows(6e-4)),
    ("acc", "bwt", "fwt", "mixed_acc", "agnostic_acc", "batch_acc", "seconds"),
)
