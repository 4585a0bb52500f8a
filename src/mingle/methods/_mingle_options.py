"""Options, presets and replays of the method; each preset states every option that makes it what it is."""

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from mingle.adaptation import SeedSelection
from mingle.config import Options
from mingle.layers import GateReduction
from mingle.subspace import Basis, Projection


class MingleOptions(Options):
    """Options of the method; the defaults are what we recommend.

    ``rank`` and ``lr`` left out follow the model's width d: ``rank = clamp(64·d/768, 16, 64)``,
    ``lr = 1e-4 · max(1, 768/d)`` – the paper's values at d ≥ 768. ``seeds_in_all`` samples are drawn where it
    is given, ``seeds_per_class`` times the number of classes where it is not.
    """

    sites: str = "full"
    rank: int | None = Field(None, ge=1)
    projection: Projection = "block"
    vectors: Literal["dropped", "gated"] = "dropped"
    gates: Literal["adapted", "static"] = "adapted"
    static_gate: float = 0.3
    gate_reduction: GateReduction = "sample"
    gate_init: Literal["zeros", "normal"] = "zeros"
    gate_bias: Literal["free", "augmented"] = "augmented"
    null_space: Literal["relaxed", "hard", "off"] = "relaxed"
    acts_on: Literal["gradient", "update"] = "update"
    beta: float = Field(0.99, ge=0, le=1)
    gamma: float = Field(1.0, ge=0)
    directions: int = Field(3, ge=0)
    basis: Basis = "rank_revealing"
    steps: int = Field(50, ge=0)
    lr: float | None = Field(None, gt=0)
    batch_size: int = Field(16, ge=1)
    temperature: float = Field(2.0, gt=0)
    loss: Literal["kl", "soft_ce"] = "kl"
    seeds: SeedSelection = "random"
    seeds_per_class: int = Field(5, ge=1)
    seeds_in_all: int | None = Field(None, ge=1)
    seed_pool: Literal["held_out", "scored"] = "held_out"


class ResolvedOptions(MingleOptions):
    """Options with the rank and lr that are used for a model."""

    rank: int = Field(ge=1)
    lr: float = Field(gt=0)


PAPER: dict[str, Any] = {
    "projection": "block+diagonal",
    "vectors": "dropped",
    "gate_reduction": "sample",
    "gate_init": "zeros",
    "gate_bias": "free",
    "null_space": "relaxed",
    "acts_on": "gradient",
    "basis": "qr",
    "loss": "kl",
    "seeds": "label",
    "seed_pool": "scored",
}
"""The formulas of the paper."""

REFERENCE = PAPER | {
    "projection": "block",
    "gate_reduction": "batch",
    "gate_init": "normal",
    "loss": "soft_ce",
}
"""What the released code computes; rank and lr still follow the width rule (its 64 and 1e-4 at d ≥ 768)."""

TEXT: dict[str, Any] = {"lr": 1e-3, "batch_size": 8, "seeds_in_all": 100}
"""The paper's settings for text models; an answer vocabulary has no fixed number of classes to count by."""

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": PAPER,
    "reference": REFERENCE,
    "light": {"sites": "light"},
    "static": {"gates": "static"},
    "text": TEXT,
}


@dataclass(frozen=True)
class MingleReplay:
    """Explicit choices for an exact replay; what is left out is drawn from the seed.

    ``gates``: (w (d_in,), c ()) per Linear; ``seeds``: indices into the pool; ``batches``: index lists into
    the chosen seeds; ``effective_ranks``: a per Linear.
    """

    gates: dict[str, tuple[Tensor, Tensor]] | None = None
    seeds: Tensor | None = None
    batches: list[Tensor] | None = None
    effective_ranks: dict[str, int] = field(default_factory=dict)
