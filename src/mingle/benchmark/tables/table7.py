"""Rank of the experts and the Linears that get one."""

from dataclasses import replace

from mingle.benchmark.plan import Contender, Table
from mingle.benchmark.tables.base_rows import sweep


def _at(sites: str) -> tuple[Contender, ...]:
    rows = sweep("rank", (4, 8, 16, 32, 64), {"sites": sites})
    return tuple(
        replace(row, label=f"{sites}, {row.label}", point={**row.point, "sites": sites}) for row in rows
    )


PLUGIN = Table(
    "Rank and insertion sites",
    (*_at("full"), *_at("light")),
    ("acc", "bwt", "mixed_acc", "agnostic_acc", "batch_acc", "parameters", "megabytes", "images_per_second"),
    curves=("rank",),
)
