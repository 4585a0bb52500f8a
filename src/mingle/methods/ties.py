"""TIES-Merging (arXiv 2306.01708) in pairwise continual form: trim, elect signs, disjoint sum."""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from mingle.config import Options
from mingle.methods.base_method import Progress
from mingle.methods.base_streaming import Plan, Sources, StreamingMethod, Versions

CHUNK = 2**22
"""Entries that are counted and merged at once."""


class TiesOptions(Options):
    """``scale``: λ (0.3 for 8 tasks, 0.1 for 14 and 20); ``density``: share of entries that trimming
    keeps.
    """

    scale: float = Field(0.3, gt=0)
    density: float = Field(0.2, gt=0, le=1)


class Ties(StreamingMethod[TiesOptions]):
    """``θ ← θ + λ Σ_v v̂ ∘ [sign v̂ = s]`` over the vectors v = θ − θ0 and Δt; the first task is ``θ0 + λ
    Δ1``.

    v̂ keeps the largest magnitudes of v and is zero elsewhere; ``s = sign Σ_v v̂``. Choices: v is trimmed
    as one vector over the whole model, as in the paper; v̂ keeps ``⌊density · n⌋`` of n entries, at least
    one, and all that equal the smallest of these; where the trimmed values cancel exactly nothing is
    added.
    """

    options_type = TiesOptions

    def plan(self, sources: Sources, progress: Progress) -> Plan:
        """Finds both thresholds first, in passes over the tensors; nothing is trimmed at t = 1."""
        scale = self.options.scale
        if sources.t == 1:
            return Plan(lambda _, v: v.base + scale * (v.new - v.base))
        total = sum(map(sources.numel, sources.names()))
        keep = max(int(self.options.density * total), 1)
        dtype = sources.state.base.dtype
        searches = [MagnitudeSearch(keep, dtype) for _ in range(2)]

        def look(_: str, versions: Versions) -> None:
            for part in versions.parts(CHUNK):
                for search, vector in zip(searches, part.vectors(), strict=True):
                    search.count(vector)

        for number in range(searches[0].passes):
            sources.visit(look, f"threshold, pass {number + 1}", progress)
            for search in searches:
                search.narrow()
        thresholds = [search.magnitude for search in searches]

        def merge(_: str, versions: Versions) -> Tensor:
            parts = [v.merged + scale * _disjoint_sum(v, thresholds) for v in versions.parts(CHUNK)]
            return torch.cat(parts).reshape(versions.base.shape)

        return Plan(merge, {"thresholds": [float(threshold) for threshold in thresholds]})


class MagnitudeSearch:
    """The exact k-th largest magnitude of numbers that pass by a few times, in 65536 counters.

    The bit patterns of non-negative floats are in the order of their values: each pass counts the next 16
    bits of the numbers whose leading bits are those already found.
    """

    def __init__(self, k: int, dtype: torch.dtype) -> None:
        self._k, self._dtype = k, dtype
        self._bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
        self._shift = 8 * dtype.itemsize
        self.passes = dtype.itemsize // 2
        self._found = 0
        self._counts = torch.zeros(2**16, dtype=torch.int64)

    def count(self, values: Tensor) -> None:
        """Takes notice of some of the numbers; every pass must see all of them."""
        bits = values.reshape(-1).abs().view(self._bits).long()
        # A shift by all 64 bits would be undefined; the sign bit that 63 leave over is zero.
        bits = bits[bits >> min(self._shift, 63) == self._found]
        self._counts += (bits >> self._shift - 16 & 0xFFFF).bincount(minlength=2**16)

    def narrow(self) -> None:
        """Ends a pass."""
        from_top = self._counts.flip(0).cumsum(0)
        place = int(torch.searchsorted(from_top, self._k))
        self._k -= int(from_top[place - 1]) if place else 0
        self._found = self._found << 16 | 2**16 - 1 - place
        self._shift -= 16
        self._counts.zero_()

    @property
    def magnitude(self) -> Tensor:
        """The k-th largest magnitude, after all passes."""
        return torch.tensor(self._found, dtype=self._bits).view(self._dtype)


def _disjoint_sum(versions: Versions, thresholds: Sequence[Tensor]) -> Tensor:
    earlier, new = (
        torch.where(vector.abs() >= threshold, vector, 0)
        for vector, threshold in zip(versions.vectors(), thresholds, strict=True)
    )
    elected = (earlier + new).sign()
    return torch.where(earlier.sign() == elected, earlier, 0) + torch.where(new.sign() == elected, new, 0)


PLUGIN = Ties
