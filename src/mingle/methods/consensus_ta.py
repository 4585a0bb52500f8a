"""Consensus task arithmetic with TALL masks (arXiv 2405.07813) in its continual forms."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from mingle.config import Options
from mingle.methods.base_method import Progress
from mingle.methods.base_streaming import Plan, Sources, StreamingMethod, Versions, lazily


class ConsensusOptions(Options):
    """``scale``: λ; ``threshold``: of the masks; ``agree``: masks that keep an entry; ``masks``: see the
    class.
    """

    scale: float = Field(0.1, gt=0)
    threshold: float = Field(0.2, ge=0)
    agree: int = Field(2, ge=1, le=255)
    masks: Literal["accumulated", "newest"] = "accumulated"


class ConsensusTa(StreamingMethod[ConsensusOptions]):
    """``θ ← θ + λ · k_t ∘ ((θ − θ0) + Δt)``; the first task is ``θ0 + λ Δ1``.

    ``mask_t = |θ0 − θt| > threshold · |θ + Δt − θt|``. ``masks="accumulated"``: ``k_t = [Σ_{i≤t} mask_i ≥
    agree]``, each mask as it was at its own step (the counts are stored in ``masks``).
    ``masks="newest"``: ``k_t = mask_t``, which is what the released continual code computes: its mask of
    the earlier tasks is all ones, never updated, and two have to agree.
    """

    options_type = ConsensusOptions
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}, "reference": {"masks": "newest"}}

    def plan(self, sources: Sources, progress: Progress) -> Plan:
        """Weights and, if they accumulate, the numbers of masks that hold each entry."""
        del progress
        scale, accumulated = self.options.scale, self.options.masks == "accumulated"

        def count(name: str, versions: Versions) -> Tensor:
            mask = self._mask(versions).to(torch.uint8)
            if sources.t == 1:
                return mask
            # Saturates: from `agree` on, more masks change nothing.
            return (sources.stored("masks", name) + mask).clamp_max(self.options.agree)

        def merge(name: str, versions: Versions) -> Tensor:
            earlier, delta = versions.vectors()
            if sources.t == 1:
                return versions.base + scale * delta
            kept = count(name, versions) >= self.options.agree if accumulated else self._mask(versions)
            return versions.merged + scale * kept * (earlier + delta)

        if not accumulated:
            return Plan(merge)
        masks = lazily(sources, lambda name: count(name, sources.versions(name)), torch.uint8)
        return Plan(merge, extra={"masks": masks})

    def _mask(self, versions: Versions) -> Tensor:
        base, merged, new = versions
        both = merged + (new - base)
        return (base - new).abs() > self.options.threshold * (both - new).abs()


PLUGIN = ConsensusTa
