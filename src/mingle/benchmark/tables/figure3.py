"""What the gates say about the samples of every task."""

from mingle.benchmark.plan import Table
from mingle.benchmark.tables.base_rows import MINGLE, MINGLE_LEARNED, MINGLE_PAPER, MINGLE_REFERENCE

PLUGIN = Table(
    "Gate activations per task",
    (MINGLE, MINGLE_LEARNED, MINGLE_PAPER, MINGLE_REFERENCE),
    ("acc", "bwt", "mixed_acc", "agnostic_acc", "sample_acc", "batch_acc"),
)
