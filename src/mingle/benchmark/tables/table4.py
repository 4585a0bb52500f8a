"""Ablation: what adaptation, frozen gates, the null space and its relaxation add."""

from mingle.benchmark.plan import Contender, Table
from mingle.benchmark.tables.base_rows import MINGLE

PLUGIN = Table(
    "Ablation",
    (
        Contender("static gates", "mingle", "static"),
        Contender("+ adaptation (all gates)", "mingle", "ablation_adaptation"),
        Contender("+ earlier gates frozen", "mingle", "ablation_frozen"),
        Contender("+ hard null space", "mingle", "ablation_hard"),
        Contender("+ relaxation (mingle)", MINGLE.method),
    ),
    ("acc", "bwt", "fwt", "mixed_acc", "agnostic_acc", "batch_acc"),
)
