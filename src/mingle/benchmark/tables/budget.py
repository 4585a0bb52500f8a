"""What it costs to bound the experts of all tasks together, and to store them in half precision.

A budget of k ranks over T tasks stands beside experts of rank k / T without one.
"""

from mingle.benchmark.plan import Contender, Table
from mingle.benchmark.tables.base_rows import sweep

PLUGIN = Table(
    "Budget and precision of the experts",
    (
        Contender("mingle", "mingle"),
        *sweep("budget", (160, 80, 40, 20, 10)),
        *sweep("rank", (8, 4, 2, 1)),
        *sweep("stored", ("bfloat16", "float16")),
    ),
    ("acc", "bwt", "mixed_acc", "parameters", "megabytes", "seconds", "images_per_second"),
    curves=("budget",),
)
