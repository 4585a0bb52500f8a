"""The table of ``mingle demo``."""

from mingle.benchmark.plan import Contender, Table
from mingle.benchmark.tables.base_rows import AVERAGE, MINGLE, TASK_ARITHMETIC

PLUGIN = Table(
    "Demo",
    (AVERAGE, TASK_ARITHMETIC, MINGLE, Contender("mingle (reference)", "mingle", "reference")),
    ("acc", "bwt", "normalised_acc", "mixed_acc", "fwt", "seconds", "megabytes"),
    shuffled=False,
)
