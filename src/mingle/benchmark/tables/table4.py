"""Ablation: what adaptation, frozen gates, the null space and its relaxation add."""

from mingle.benchmark.plan import Contender, Table

PLUGIN = Table(
    "Ablation",
    (
        Contender("static gates", "mingle", "static"),
        Contender("+ adaptation (all gates)", "mingle", "ablation_adaptation"),
        Contender("+ earlier gates frozen", "mingle", "ablation_frozen"),
        Contender("+ hard null space", "mingle", "ablation_hard"),
        Contender("+ relaxation (learned gates)", "mingle", "learned"),
    ),
    ("acc", "bwt", "fwt", "mixed_acc", "agnostic_acc", "batch_acc"),
)
