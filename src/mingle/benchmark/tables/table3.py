"""Seeds and test images under corruption."""

from dataclasses import replace

from mingle.benchmark.plan import BOUNDS, Contender, Corruption, Table
from mingle.benchmark.tables.base_rows import AVERAGE, MINGLE, MINGLE_LEARNED, OPCM, TASK_ARITHMETIC
from mingle.evaluation import CORRUPTIONS

CLEAN = "clean"


def _corrupted(contender: Contender, corruption: str) -> Contender:
    return replace(
        contender,
        label=f"{contender.label}, {corruption.replace('_', ' ')}",
        point={"method": contender.label, "corruption": corruption},
        corruption=None if corruption == CLEAN else Corruption(corruption),
    )


PLUGIN = Table(
    "Corrupted seeds and test images, severity 5",
    tuple(
        _corrupted(contender, corruption)
        for contender in (*BOUNDS, AVERAGE, TASK_ARITHMETIC, OPCM, MINGLE, MINGLE_LEARNED)
        for corruption in (CLEAN, *CORRUPTIONS)
    ),
    ("acc",),
    pivot="corruption",
    first_tasks=4,
    prefer=("stanford-cars", "eurosat", "resisc45", "gtsrb"),
)
