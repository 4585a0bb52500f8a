"""OPCM (arXiv 2501.09522): orthogonal projection of each new task vector off the merged one."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from mingle.layers import LinearGroup
from mingle.methods.base_linearwise import LinearOptions, SitesMethod
from mingle.methods.base_method import Progress
from mingle.methods.base_streaming import Plan, Sources, Versions
from mingle.subspace import Projection, project_delta, truncated_svd


class OpcmOptions(LinearOptions):
    """``alpha``: share of the singular values that is protected; ``diagonal``: of the rest, remove or
    keep it.
    """

    alpha: float = Field(0.5, ge=0, le=1)
    diagonal: Literal["removed", "kept"] = "removed"


class Opcm(SitesMethod[OpcmOptions]):
    """``V_t = λ_{t−1} (θ − θ0) + P(Δt)``, ``λ_t = ‖V_t‖ / n_t``, ``θ ← θ0 + V_t / λ_t``; the first task
    is θ1.

    ``n_t = mean_{i≤t} ‖Δi‖``; norms are over the whole model. P, for weights of Linears, with ``U S Vᵀ``
    the SVD of the merged vector: ``M = Uᵀ Δt V`` with ``M[:s, :s]`` set to zero, s the number of leading
    singular values whose cumulative share of ΣS is at most α, and with the diagonal set to zero as far as
    the merged vector has singular values (``diagonal="kept"``, preset reference: not, as the released
    code, whose attempt changes a copy). Choices: singular values under 1e-7 of the largest or so count as
    zero; where V_t or n_t is zero, λ_t = 1.

    P is computed twice, once for ‖V_t‖ and once for θ: keeping it would hold the whole model in memory.
    """

    options_type = OpcmOptions
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}, "reference": {"diagonal": "kept"}}

    def plan(self, sources: Sources, progress: Progress) -> Plan:
        """One pass for the norms; λ_t and n_t are in the report, where the next step finds them."""
        linears = self.linear_weights(sources.state.base)
        last = sources.state.steps[-1].report if sources.state.steps else {"lambda": 1.0, "mean_norm": 0.0}
        vector = partial(self._vector, linears, last["lambda"])
        task_norm = merged_norm = 0.0

        def look(name: str, versions: Versions) -> None:
            nonlocal task_norm, merged_norm
            task_norm = math.hypot(task_norm, float((versions.new.double() - versions.base).norm()))
            merged_norm = math.hypot(merged_norm, float(vector(name, versions).norm()))

        sources.visit(look, "norms", progress)
        mean_norm = last["mean_norm"] + (task_norm - last["mean_norm"]) / sources.t
        factor = merged_norm / mean_norm if merged_norm and mean_norm else 1.0
        return Plan(
            lambda name, versions: versions.base.double() + vector(name, versions) / factor,
            {"lambda": factor, "mean_norm": mean_norm},
        )

    def _vector(
        self, linears: Mapping[str, LinearGroup], factor: float, name: str, versions: Versions
    ) -> Tensor:
        merged, new = Versions(*(tensor.double() for tensor in versions)).vectors()
        if name not in linears:
            return factor * merged + new
        turned = linears[name].turned
        return factor * merged + turned(self._projected(turned(merged), turned(new)))

    def _projected(self, merged: Tensor, new: Tensor) -> Tensor:
        factors = truncated_svd(merged, min(merged.shape))
        if not factors.S.any():
            return new
        share = factors.S.cumsum(0) / factors.S.sum()
        # With α = 1 rounding must not decide whether the last share, 1, is reached.
        protected = int((share <= self.options.alpha + 1e-12).sum())
        kind: Projection = "block+diagonal" if self.options.diagonal == "removed" else "block"
        return project_delta(new, factors, kind, min(protected, int((factors.S > 0).sum())))[0]


PLUGIN = Opcm
