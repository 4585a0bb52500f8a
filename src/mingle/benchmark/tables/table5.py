"""Steps of adaptation."""

from mingle.benchmark.plan import Table
from mingle.benchmark.tables.base_rows import sweep

PLUGIN = Table(
    "Adaptation steps",
    sweep("steps", (0, 10, 25, 50, 100, 200)),
    ("acc", "bwt", "fwt", "mixed_acc", "agnostic_acc", "batch_acc", "seconds"),
    curves=("steps",),
)
