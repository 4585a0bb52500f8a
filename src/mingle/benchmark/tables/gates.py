"""Gates that are solved for, trained, told or not there at all, on projected experts and on whole ones."""

from mingle.benchmark.plan import Contender, Table
from mingle.benchmark.tables.base_rows import (
    MADE_IT,
    MINGLE,
    MINGLE_LEARNED,
    MINGLE_PAPER,
    MINGLE_REFERENCE,
    NEAREST_SUBSPACE,
    OPCM,
)

WHOLE = {"projection": "none"}

PLUGIN = Table(
    "Gates in closed form",
    (
        OPCM,
        Contender("NuFilt", "nufilt"),
        MINGLE_REFERENCE,
        MINGLE_PAPER,
        MINGLE_LEARNED,
        Contender("mingle, learned gates, not projected", "mingle", "learned", options=WHOLE),
        MINGLE,
        Contender("… projected", "mingle", options={"projection": "block"}),
        Contender("… shared where confused", "mingle", options={"router_share": "confused"}),
        Contender("… reads a stem", "mingle", options={"router_reads": "stem"}),
        Contender("… reads every block", "mingle", options={"router_reads": "block"}),
        Contender("… reads every Linear", "mingle", options={"router_reads": "layer"}),
        *(
            Contender(f"… refined by {steps} steps", "mingle", options={"refine": steps})
            for steps in (5, 10, 20, 50)
        ),
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
        "adaptation_seconds",
        "relative_speed",
        "megabytes",
    ),
)
