"""Rows that several tables share. λ as the paper sets it: 0.3 for 8 tasks, 0.1 for 14 and 20."""

from collections.abc import Iterable, Mapping
from typing import Any

from mingle.benchmark.plan import Contender

SMALL_SCALE = {"scale": 0.1}

AVERAGE = Contender("average", "average")
TASK_ARITHMETIC = Contender("task arithmetic", "task_arithmetic", many_tasks=SMALL_SCALE)
OPCM = Contender("OPCM", "opcm")
MINGLE = Contender("mingle", "mingle")
MINGLE_LEARNED = Contender("mingle, learned gates", "mingle", "learned")
MINGLE_LIGHT = Contender("learned gates, light (MINGLE*)", "mingle", "learned", options={"sites": "light"})
MINGLE_PAPER = Contender("mingle, paper's formulas", "mingle", "paper")
MINGLE_REFERENCE = Contender("mingle, released code", "mingle", "reference")

DATA_FREE = (
    AVERAGE,
    TASK_ARITHMETIC,
    Contender("TIES", "ties", many_tasks=SMALL_SCALE),
    Contender("MagMax", "magmax"),
    Contender("Consensus TA", "consensus_ta"),
    OPCM,
    Contender("NuFilt", "nufilt"),
    Contender("DOP", "dop"),
    Contender("TSV-M", "tsv_m"),
    Contender("Iso-C", "iso_c"),
    Contender("WUDI", "wudi"),
)
"""Methods that see weights only."""

TEST_TIME = (
    Contender("AdaMerging", "adamerging"),
    Contender("AdaMerging, restarting", "adamerging", "reference"),
    Contender("WEMoE", "wemoe"),
    Contender("LoRA-WEMoE", "lora_wemoe"),
)
"""Baselines that adapt on unlabelled seeds."""

NEAREST_SUBSPACE = Contender("nearest subspace", "nearest_subspace")
MADE_IT = Contender("MADE-IT-like", "made_it")
ROUTERS = (NEAREST_SUBSPACE, MADE_IT, Contender("oracle router", "oracle"))
"""Other gates on the same experts, or on ones that tasks share."""


def sweep(key: str, values: Iterable[Any], fixed: Mapping[str, Any] | None = None) -> tuple[Contender, ...]:
    """Mingle with learned gates, with one option at several values."""
    return tuple(
        Contender(
            f"{key} {value}", "mingle", "learned", options={**(fixed or {}), key: value}, point={key: value}
        )
        for value in values
    )
