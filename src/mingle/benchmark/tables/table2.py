"""Against training on labels: MINGLE-Seq and the sequentially fine-tuned model (the paper: MTIL)."""

from mingle.benchmark.plan import Contender, Table
from mingle.benchmark.tables.base_rows import MINGLE, MINGLE_LEARNED, OPCM

PLUGIN = Table(
    "Training on labels, task after task, against merging without them",
    (
        Contender("sequentially fine-tuned", "sequential"),
        OPCM,
        MINGLE,
        MINGLE_LEARNED,
        Contender("mingle, sequential (MINGLE-Seq)", "mingle_seq"),
    ),
    ("acc", "bwt", "fwt", "mixed_acc", "agnostic_acc", "seconds"),
)
