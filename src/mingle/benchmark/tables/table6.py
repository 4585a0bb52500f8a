"""Seed samples per class."""

from mingle.benchmark.plan import Table
from mingle.benchmark.tables.base_rows import sweep

PLUGIN = Table(
    "Seed samples per class",
    sweep("seeds_per_class", (1, 2, 3, 5, 10), {"seeds_in_all": None}),
    ("acc", "bwt", "fwt", "mixed_acc", "agnostic_acc", "batch_acc", "unseen_acc"),
    curves=("seeds_per_class",),
)
