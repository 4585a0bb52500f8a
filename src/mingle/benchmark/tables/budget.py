"""What it costs to bound the experts of all tasks together, and to store them in half precision.

A budget of k ranks for T tasks stands beside experts of rank k / T at T = 20, and beside as many bytes shared
by all Linears on the tower of the glyph suites, where 1 rank in every Linear takes 0.0553 MB.
"""

from mingle.benchmark.plan import Contender, Table
from mingle.benchmark.tables.base_rows import MINGLE, MINGLE_LEARNED, sweep

RANKS = (160, 80, 40, 20, 10)

PLUGIN = Table(
    "Budget and precision of the experts",
    (
        MINGLE_LEARNED,
        *sweep("budget", RANKS),
        *(
            Contender(f"budget {size}MB", "mingle", "learned", options={"budget": f"{size}MB"})
            for size in ("4.424", "2.212", "1.106")
        ),
        *sweep("rank", (8, 4, 2, 1)),
        *sweep("stored", ("bfloat16", "float16")),
        MINGLE,
        *(
            Contender(
                f"mingle, budget {ranks}",
                "mingle",
                options={"budget": ranks},
                point={"budget": ranks, "gates": "closed form"},
            )
            for ranks in RANKS
        ),
    ),
    ("acc", "bwt", "mixed_acc", "parameters", "megabytes", "seconds", "images_per_second"),
    curves=("budget",),
)
