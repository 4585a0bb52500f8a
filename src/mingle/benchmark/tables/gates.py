"""Gates that are solved for, trained, told or not there at all, on projected experts and on whole ones."""

from mingle.benchmark.plan import Contender, Table
from mingle.benchmark.tables.base_rows import MINGLE, MINGLE_PAPER, MINGLE_REFERENCE, OPCM

WHOLE = {"projection": "none"}
ANALYTIC = {"gates": "analytic"}
FINE = {**ANALYTIC, **WHOLE, "router_features": "mean+std"}

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
        Contender("analytic, not projected", "mingle", options={**ANALYTIC, **WHOLE}),
        Contender("analytic, not projected, mean+std", "mingle", options=FINE),
        Contender("… of every block", "mingle", options={**FINE, "router_reads": "block"}),
        Contender("… of every Linear", "mingle", options={**FINE, "router_reads": "layer"}),
        Contender("nearest subspace", "nearest_subspace"),
        Contender("nearest subspace, not projected", "nearest_subspace", options=WHOLE),
        Contender("oracle router", "oracle"),
        Contender("oracle router, not projected", "oracle", options=WHOLE),
    ),
    (
        "acc",
        "bwt",
        "normalised_acc",
        "mixed_acc",
        "agnostic_acc",
        "seconds",
        "images_per_second",
        "megabytes",
    ),
)
