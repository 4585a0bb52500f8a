"""Only experts whose gate matters: what it gains in speed and what it costs in accuracy."""

from collections.abc import Mapping
from typing import Any

from mingle.benchmark.plan import Contender, Table
from mingle.benchmark.tables.base_rows import MINGLE


def _row(key: str, value: float) -> Contender:
    point: Mapping[str, Any] = {key: value}
    return Contender(f"{key.replace('_', ' ')} {value:g}", "mingle", options=point, point=point)


PLUGIN = Table(
    "Experts that a sample uses, gates in closed form",
    (
        MINGLE,
        *(_row("strongest", count) for count in (1, 2, 4)),
        *(_row("gate_threshold", least) for least in (0.01, 0.05, 0.2)),
    ),
    ("acc", "bwt", "mixed_acc", "agnostic_acc", "images_per_second", "relative_speed"),
    curves=("strongest", "gate_threshold"),
)
