"""Every method that does not train on labels."""

from mingle.benchmark.plan import Contender, Table
from mingle.benchmark.tables.base_rows import (
    DATA_FREE,
    MINGLE,
    MINGLE_LEARNED,
    MINGLE_LIGHT,
    MINGLE_PAPER,
    MINGLE_REFERENCE,
    ROUTERS,
    TEST_TIME,
)

PLUGIN = Table(
    "Methods that do not train on labels",
    (
        *DATA_FREE,
        *TEST_TIME,
        *ROUTERS,
        MINGLE,
        MINGLE_LIGHT,
        MINGLE_LEARNED,
        Contender("learned gates, seeds scored", "mingle", "learned", options={"seed_pool": "scored"}),
        MINGLE_PAPER,
        MINGLE_REFERENCE,
    ),
    (
        "acc",
        "bwt",
        "normalised_acc",
        "mixed_acc",
        "agnostic_acc",
        "sample_acc",
        "batch_acc",
        "unseen_acc",
        "seconds",
    ),
)
