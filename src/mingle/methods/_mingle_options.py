"""Options, presets and replays of the method; each preset states every option that makes it what it is."""

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from mingle.adaptation import SeedSelection
from mingle.config import Options
from mingle.layers import GateReduction
from mingle.methods.base_method import Base
from mingle.subspace import Basis, Projection

REFERENCE_WIDTH = 768
"""The width that the paper's rank belongs to."""


class ExpertOptions(Options):
    """How a checkpoint becomes experts.

    ``rank`` left out follows the model's width d: ``rank = clamp(64·d/768, 16, 64)``, the paper's at d ≥ 768.
    """

    sites: str = "full"
    rank: int | None = Field(None, ge=1)
    projection: Projection = "block"


class GateOptions(ExpertOptions):
    """How gates are trained and what protects the earlier tasks from them."""

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
    lr: float = Field(1e-4, gt=0)
    batch_size: int = Field(16, ge=1)


class MingleOptions(GateOptions):
    """Options of the method; the defaults are what we recommend.

    ``old_gates="trained"``: the gates of all tasks are trained at every step, and the newest step's count.
    ``seeds_in_all`` samples are drawn where it is given, ``seeds_per_class`` times the number of classes
    where it is not. ``trunk="bfloat16"``: while gates adapt, the model that carries them computes in
    bfloat16 – several times faster where the processor can, and not the same gates to the last digits.
    """

    vectors: Literal["dropped", "gated"] = "dropped"
    gates: Literal["adapted", "static"] = "adapted"
    static_gate: float = 0.3
    old_gates: Literal["frozen", "trained"] = "frozen"
    temperature: float = Field(2.0, gt=0)
    loss: Literal["kl", "soft_ce"] = "kl"
    trunk: Literal["exact", "bfloat16"] = "exact"
    seeds: SeedSelection = "random"
    seeds_per_class: int = Field(5, ge=1)
    seeds_in_all: int | None = Field(None, ge=1)
    seed_pool: Literal["held_out", "scored"] = "held_out"


class ResolvedOptions(MingleOptions):
    """Options with the rank that is used for a model."""

    rank: int = Field(ge=1)


def width_rule(base: Base) -> int:
    """Rank for the base's width d: ``clamp(64·d/768, 16, 64)``."""
    width = base.backbone.width(base.backbone.skeleton(base.checkpoint))
    return min(max(64 * width // REFERENCE_WIDTH, 16), 64)


def resolve(options: ExpertOptions, base: Base) -> ResolvedOptions:
    """Mingle's options as far as these name them, the rest at its defaults, rank by the width rule.

    Raises UnknownNameError for the sites.
    """
    base.backbone.groups(base.backbone.skeleton(base.checkpoint), options.sites)
    chosen = options.model_dump(include=set(ResolvedOptions.model_fields), exclude_none=True)
    return ResolvedOptions.model_validate({"rank": width_rule(base)} | chosen)


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
"""What the released code computes; the rank still follows the width rule (its 64 at d ≥ 768)."""

TEXT: dict[str, Any] = {"lr": 1e-3, "batch_size": 8, "seeds_in_all": 100}
"""The paper's settings for text models; an answer vocabulary has no fixed number of classes to count by."""

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": PAPER,
    "reference": REFERENCE,
    "light": {"sites": "light"},
    "light_paper": PAPER | {"sites": "light"},
    "light_reference": REFERENCE | {"sites": "light+out"},
    "static": {"gates": "static"},
    "text": TEXT,
    "ablation_adaptation": {"old_gates": "trained", "null_space": "off"},
    "ablation_frozen": {"null_space": "off"},
    "ablation_hard": {"null_space": "hard"},
}
"""The rows of the paper's ablation: ``static``; ``ablation_adaptation``, where the gates of all tasks adapt
at every step; ``ablation_frozen``, the newest only; ``ablation_hard``, and only in the null space of what the
earlier tasks use; ``default``, with that relaxed. The released light configuration selects ``out_proj`` too.
"""


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
