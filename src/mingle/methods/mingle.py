"""MINGLE (arXiv 2505.11883): low-rank experts, input-dependent gates, null-space constrained adaptation.

A step holds what its task added: ``experts``, ``gates`` and ``subspace`` (see `_mingle_experts` and
`_mingle_gates`), and under a budget what is left of all experts (`base_experts`). Steps of earlier tasks are
never touched again.
"""

import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mingle.errors import ConfigError
from mingle.layers import Selection, select_experts
from mingle.methods._mingle_analytic import routed_model
from mingle.methods._mingle_budget import within_budget
from mingle.methods._mingle_experts import assemble, build_experts
from mingle.methods._mingle_gates import adapt_gates, static_gates
from mingle.methods._mingle_options import PRESETS, MingleOptions, MingleReplay, ResolvedOptions
from mingle.methods._mingle_refine import analytic_gates
from mingle.methods._mingle_resolve import resolve
from mingle.methods._seed_check import seed_check
from mingle.methods.base_experts import Tensors
from mingle.methods.base_method import (
    Arrival,
    Base,
    Method,
    Progress,
    State,
    Step,
    require_pool,
    require_seeds,
    silent,
)


class Mingle(Method[MingleOptions]):
    """Each checkpoint becomes gated low-rank experts; only the newest gate is adapted."""

    options_type = MingleOptions
    presets = PRESETS

    @property
    def needs_seeds(self) -> bool:
        """True unless the gates are static."""
        return self.options.gates != "static"

    @property
    def scored_seeds(self) -> bool:
        """True for ``seed_pool="scored"``."""
        return self.options.seed_pool == "scored"

    def settings(self, base: Base) -> dict[str, Any]:
        """Every option with the value that is used."""
        return resolve(self.options, base).model_dump()

    def update(self, state: State, arrival: Arrival, progress: Progress = silent) -> State:
        """Builds the experts of the task, adapts their gates, and protects what the task uses.

        Raises SeedsError without seeds, CheckpointError without a head, ConfigError for a foreign replay,
        DivergedError when the loss is not finite.
        """
        replay = MingleReplay() if arrival.replay is None else arrival.replay
        if not isinstance(replay, MingleReplay):
            raise ConfigError(f"replay: expected a MingleReplay, found {type(replay).__name__}")
        if self.options.gates == "adapted":
            require_seeds(arrival)
        elif self.needs_seeds:
            require_pool(arrival)
        options = resolve(self.options, state.base)
        started = time.perf_counter()
        experts, energy = build_experts(state, arrival, options, replay.effective_ranks, progress)
        newest, budget = within_budget(
            state, arrival.name, experts, energy["norm"], options.budget, options.merge_cosine
        )
        built = time.perf_counter()
        gates, adaptation = self._gates(state, arrival, options, newest, replay, progress)
        timing = {"experts": built - started, "adaptation": time.perf_counter() - built}
        report = {
            "settings": options.model_dump(),
            "energy": energy,
            "timing": timing,
            **budget,
            **adaptation,
        }
        return state.append(Step(arrival.name, {**newest, **gates}, arrival.head, report))

    def model(self, state: State, task: str | None = None) -> nn.Module:
        """The base's class with a MixtureLinear at every merged site."""
        del task
        options = self.options
        model = routed_model(state, options) if options.gates == "analytic" else assemble(state, options)[0]
        return select_experts(model, Selection(options.strongest, options.gate_threshold))

    def _gates(
        self,
        state: State,
        arrival: Arrival,
        options: ResolvedOptions,
        newest: Tensors,
        replay: MingleReplay,
        progress: Progress,
    ) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
        """Tensors of the step by file stem, and what to report."""
        if options.gates == "static":
            gates = static_gates(newest["experts"], options.static_gate, state.base.dtype)
            return {"gates": gates, "subspace": {}}, {}
        if options.gates == "analytic":
            router, report, looks = analytic_gates(state, arrival, options, newest, replay, progress)
            added: dict[str, Mapping[str, Tensor]] = {"router": router}
        else:
            gates, subspace, report, looks = adapt_gates(state, arrival, options, newest, replay, progress)
            added = {"gates": gates, "subspace": subspace}
        # Statistics that are cut do not tell how far samples spread.
        whole = added.get("router", {}) if options.router_rank is None else {}
        return added, report | seed_check(state, arrival.name, whole, report["seeds"], looks)


PLUGIN = Mingle
