"""Options, presets and replays of the method; each preset states every option that makes it what it is."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from mingle.adaptation import SeedSelection
from mingle.config import Options
from mingle.layers import GateReduction, RouterFeatures, RouterForm
from mingle.subspace import Basis, Projection

REFERENCE_WIDTH = 768
"""The width that the paper's rank belongs to."""


def _budget(value: object) -> object:
    text = str(value).strip().upper()
    if value is None:
        return None
    if not isinstance(value, bool) and re.fullmatch("[0-9]{1,9}", text) and int(text):
        return int(text)
    if (found := re.fullmatch(r"([0-9]{1,9}(\.[0-9]{1,9})?) ?MB", text)) and float(found[1]):
        return f"{found[1]}MB"
    raise ValueError("expected ranks in every Linear, such as 48, or experts in MB, such as 20MB")


Budget = Annotated[int | str | None, BeforeValidator(_budget)]
"""Ranks of all experts of a Linear together, or MB (10^6 bytes) of all experts as they are stored."""


def bytes_of(budget: str) -> float:
    """A budget in MB as bytes."""
    return float(budget.removesuffix("MB")) * 1e6


class ExpertOptions(Options):
    """How a checkpoint becomes experts.

    ``rank`` left out follows the model's width d: ``rank = clamp(64·d/768, 16, 64)``, the paper's at d ≥ 768.
    ``stored``: A and B are rounded to this once, when they are made, and used as such from then on – to
    project later tasks, to adapt gates, to predict. ``exact``: the base's precision, in which models compute
    either way.
    """

    sites: str = "full"
    rank: int | None = Field(None, ge=1)
    projection: Projection = "block"
    stored: Literal["exact", "bfloat16", "float16"] = "exact"

    @property
    def stored_dtype(self) -> torch.dtype | None:
        """What A and B are rounded to, if anything."""
        return {"exact": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[self.stored]


class GateOptions(ExpertOptions):
    """How gates are trained and what protects the earlier tasks from them.

    ``budget``: what the experts of all tasks may take together; None: as many as there are tasks. Beyond it
    experts whose ΔW have a cosine of ``merge_cosine`` or more become one (above 1: none do), and the ranks
    with the least of their task's energy are given up.
    """

    budget: Budget = None
    merge_cosine: float = Field(0.95, gt=0)

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


class RouterOptions(GateOptions):
    """How gates in closed form (``gates="analytic"``) read an input, and what they make of it.

    ``router_reads``: the first blocks of the frozen base, which a prediction then computes twice (``trunk``);
    those of the merged model, which then have no experts (``stem``); the input of every block (``block``); or
    what each Linear reads (``layer``). ``router_depths``: after how many blocks of the trunk or stem; None: a
    quarter, a half and three quarters of all; of a stem, after every block of the first quarter.
    ``router_share="confused"``: gates of tasks that a router takes for each other are shared, as often as
    it does so on seeds that were left out (raw scores are not). ``router_rank``: rows that a task's second
    moment keeps at most; None: all. ``refine``: steps of distillation after that, for the newest gates; they
    may move along what the router reads of earlier tasks whose gates have a mean of ``similar`` or more on
    the new task's seeds (above 1: of none).
    """

    router_reads: Literal["trunk", "stem", "block", "layer"] = "trunk"
    router_depths: tuple[int, ...] | None = Field(None, min_length=1)
    router_features: RouterFeatures = "mean+std+first"
    router_ridge: float = Field(1e-2, ge=1e-10)
    router_rank: int | None = Field(None, ge=1)
    router_form: RouterForm = "softmax"
    router_temperature: float = Field(0.05, gt=0)
    router_top: int = Field(1, ge=1)
    router_share: Literal["none", "confused"] = "none"
    refine: int = Field(0, ge=0)
    similar: float = Field(0.1, gt=0)

    @property
    def reads_base(self) -> bool:
        """Whether there is one router, and experts change nothing that it reads."""
        return self.router_reads in {"trunk", "stem"}


class MingleOptions(RouterOptions):
    """Options of the method; the defaults are what we recommend.

    ``gates``: ``analytic``, solved for in closed form, all of them anew at every step; ``adapted`` on seeds
    by gradient steps; ``static``, all at ``static_gate``. Gates that find their task need no projection.

    ``old_gates="trained"``: the gates of all tasks are trained at every step, and the newest step's count.
    ``seeds_in_all`` samples are drawn where it is given, ``seeds_per_class`` times the number of classes
    where it is not. ``trunk="bfloat16"``: while gates adapt, the model that carries them computes in
    bfloat16 – several times faster where the processor can, and not the same gates to the last digits.
    ``strongest``, ``gate_threshold``: a sample uses at most so many experts of every Linear, those with the
    largest ``|g_i|``, and none with ``|g_i|`` below the threshold; of predictions only, gates adapt with all.
    """

    projection: Projection = "none"
    vectors: Literal["dropped", "gated"] = "dropped"
    gates: Literal["adapted", "analytic", "static"] = "analytic"
    static_gate: float = 0.3
    old_gates: Literal["frozen", "trained"] = "frozen"
    temperature: float = Field(2.0, gt=0)
    loss: Literal["kl", "soft_ce"] = "kl"
    trunk: Literal["exact", "bfloat16"] = "exact"
    seeds: SeedSelection = "random"
    seeds_per_class: int = Field(5, ge=1)
    seeds_in_all: int | None = Field(None, ge=1)
    seed_pool: Literal["held_out", "scored"] = "held_out"
    strongest: int | None = Field(None, ge=1)
    gate_threshold: float = Field(0.0, ge=0)


class ResolvedOptions(MingleOptions):
    """Options with the rank that is used for a model."""

    rank: int = Field(ge=1)


LEARNED: dict[str, Any] = {
    "gates": "adapted",
    "projection": "block",
    "gate_reduction": "sample",
    "gate_init": "zeros",
    "gate_bias": "augmented",
    "acts_on": "update",
    "basis": "rank_revealing",
    "loss": "kl",
    "seeds": "random",
    "seed_pool": "held_out",
}
"""Gates that are trained, by the paper's method with what we found to be better in its details."""

PAPER: dict[str, Any] = {
    "gates": "adapted",
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
    "learned": LEARNED,
    "paper": PAPER,
    "reference": REFERENCE,
    "light": {"sites": "light"},
    "light_paper": PAPER | {"sites": "light"},
    "light_reference": REFERENCE | {"sites": "light+out"},
    "static": {"gates": "static", "projection": "block"},
    "text": TEXT,
    "ablation_adaptation": LEARNED | {"old_gates": "trained", "null_space": "off"},
    "ablation_frozen": LEARNED | {"null_space": "off"},
    "ablation_hard": LEARNED | {"null_space": "hard"},
}
"""The rows of the paper's ablation: ``static``; ``ablation_adaptation``, where the gates of all tasks adapt
at every step; ``ablation_frozen``, the newest only; ``ablation_hard``, and only in the null space of what the
earlier tasks use; ``learned``, with that relaxed. The released light configuration selects ``out_proj`` too.
"""


@dataclass(frozen=True)
class MingleReplay:
    """Explicit choices for an exact replay; what is left out is drawn from the seed.

    ``gates``: (w (d_in,), c ()) per Linear; ``seeds``: indices into the pool; ``batches``: index lists into
    the chosen seeds; ``effective_ranks``: a per Linear. Gates in closed form take no gates and no batches.
    """

    gates: dict[str, tuple[Tensor, Tensor]] | None = None
    seeds: Tensor | None = None
    batches: list[Tensor] | None = None
    effective_ranks: dict[str, int] = field(default_factory=dict)
