"""Forward transfer: a task right after it was merged, against its own model."""

from mingle.benchmark.plan import Table
from mingle.benchmark.tables.base_rows import (
    DATA_FREE,
    MINGLE,
    MINGLE_LEARNED,
    MINGLE_LIGHT,
    MINGLE_REFERENCE,
    TEST_TIME,
)

PLUGIN = Table(
    "Forward transfer",
    (*DATA_FREE, *TEST_TIME, MINGLE, MINGLE_LIGHT, MINGLE_LEARNED, MINGLE_REFERENCE),
    ("fwt", "acc", "bwt", "mixed_acc", "agnostic_acc"),
)
