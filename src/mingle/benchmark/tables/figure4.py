"""Sensitivity to the relaxation (β, γ) and to the number of protected directions k."""

from mingle.benchmark.plan import Table
from mingle.benchmark.tables.base_rows import sweep

PLUGIN = Table(
    "Sensitivity to β, γ and k",
    (
        *sweep("beta", (0.5, 0.9, 0.99, 0.999)),
        *sweep("gamma", (0.0, 0.5, 1.0, 2.0, 5.0, 20.0)),
        *sweep("directions", (0, 1, 3, 5, 10)),
    ),
    ("acc", "bwt", "fwt", "mixed_acc", "agnostic_acc", "batch_acc"),
    curves=("beta", "gamma", "directions"),
)
