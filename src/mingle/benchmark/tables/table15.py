"""What each method costs."""

from mingle.benchmark.plan import Table
from mingle.benchmark.tables.base_rows import DATA_FREE, MINGLE, MINGLE_LEARNED, MINGLE_LIGHT, TEST_TIME

PLUGIN = Table(
    "Cost",
    (*DATA_FREE, *TEST_TIME, MINGLE, MINGLE_LIGHT, MINGLE_LEARNED),
    ("acc", "gate_parameters", "parameters", "seconds", "images_per_second", "relative_speed", "megabytes"),
)
