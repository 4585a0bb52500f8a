"""How many seeds it takes, and what seeds that are not what they should be cost.

Augmented rows stand beside ``10 seeds``: the same ten, and four copies of each.
"""

from collections.abc import Mapping
from typing import Any

from mingle.benchmark.plan import Contender, SeedVariation, Table

ALL = 1000
"""More than a pool of the suites holds: what is there is used."""

VARIED = {
    "10 seeds": SeedVariation("few", 10),
    "10 seeds, crops": SeedVariation("crops", 10),
    "10 seeds, flips": SeedVariation("flips", 10),
    "10 seeds, colour": SeedVariation("colour", 10),
    "10 seeds, mixup": SeedVariation("mixup", 10),
    "unbalanced": SeedVariation("unbalanced", 100),
    "gaussian noise": SeedVariation("gaussian_noise", 5),
    "motion blur": SeedVariation("motion_blur", 5),
    "contrast": SeedVariation("contrast", 5),
    "wrong 10%": SeedVariation("wrong", 0.1),
    "wrong 50%": SeedVariation("wrong", 0.5),
    "wrong 100%": SeedVariation("wrong", 1.0),
}

AMOUNTS: Mapping[str, Mapping[str, Any]] = {
    "1 a class": {"seeds_per_class": 1, "seeds_in_all": None},
    "5 a class": {"seeds_per_class": 5, "seeds_in_all": None},
    **{f"{amount} in all": {"seeds_in_all": amount} for amount in (10, 50, 200, ALL)},
}

TELLING = ("1 a class", "5 a class", "10 seeds", "wrong 50%", "wrong 100%")
"""For learned gates."""


def _rows(name: str, preset: str) -> tuple[Contender, ...]:
    amounts = tuple(
        Contender(f"{name}, {label}", "mingle", preset, amount, point={"seeds": label})
        for label, amount in AMOUNTS.items()
    )
    varied = tuple(
        Contender(f"{name}, {label}", "mingle", preset, point={"seeds": label}, variation=variation)
        for label, variation in VARIED.items()
    )
    return (*amounts, *varied)


PLUGIN = Table(
    "Seeds: how many, and how good",
    (
        *_rows("mingle", "default"),
        *(row for row in _rows("learned gates", "learned") if row.point["seeds"] in TELLING),
    ),
    ("acc", "bwt", "mixed_acc", "seconds"),
)
