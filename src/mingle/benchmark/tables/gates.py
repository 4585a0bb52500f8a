"""Gates that are solved for, trained, told or not there at all, on projected experts and on whole ones."""

from mingle.benchmark.plan import Contender, Table
from mingle.benchmark.tables.base_rows import (
    CLOSED_FORM,
    MADE_IT,
    MINGLE,
    MINGLE_PAPER,
    MINGLE_REFERENCE,
    NEAREST_SUBSPACE,
    OPCM,
    WHOLE,
)

ANALYTIC = {"gates": "analytic"}

PLUGIN = Table(
    "Gates in closed form",
    (
        OPCM,
        Contender("NuFilt", "nufilt"),
        MINGLE_REFERENCE,
        MINGLE_PAPER,
        MINGLE,
        Contender("mingle, not projected", "mingle", options=WHOLE),
        Contender("analytic", "mingle", options=ANALYTIC),
        Contender("analytic, not projected", "mingle", options=CLOSED_FORM),
        Contender("… of every block", "mingle", options={**CLOSED_FORM, "router_reads": "block"}),
        Contender("… of every Linear", "mingle", options={**CLOSED_FORM, "router_reads": "layer"}),
        NEAREST_SUBSPACE,
        Contender("nearest subspace, not projected", "nearest_subspace", options=WHOLE),
        MADE_IT,
        Contender("MADE-IT-like, unmerged", "made_it", "unmerged"),
        Contender("oracle router", "oracle"),
        Contender("oracle router, not projected", "oracle", options=WHOLE),
    ),
    (
        "acc",
        "bwt",
        "normalised_acc",
        "mixed_acc",
        "agnostic_acc",
        "routed_acc",
        "router_acc",
        "h_score",
        "seconds",
        "relative_speed",
        "megabytes",
    ),
)
