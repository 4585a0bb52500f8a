"""What ``tasks.yaml`` fixes."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

SOURCE_SIZE = 48
"""Side of a rendered source; every augmentation samples a picture out of it."""
IMAGE_SIZE = 32


@dataclass(frozen=True)
class Task:
    """One classification task: ``number`` is its place in ``tasks.yaml`` and salts everything drawn for it.

    ``kind``: mnist, fashion, glyph (``classes``: name -> character) or svg (name -> names in the icon sets
    that ``sets`` groups). ``look`` says how a picture is composed, ``steps`` how long it is fine-tuned.
    """

    name: str
    number: int
    kind: str
    look: str
    steps: int
    classes: dict[str, Any]
    sets: str


@cache
def recipe() -> dict[str, Any]:
    """The whole content of ``tasks.yaml``."""
    text = files(__package__).joinpath("tasks.yaml").read_text("utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content


@cache
def all_tasks() -> dict[str, Task]:
    """The twenty tasks by name."""
    return {
        name: Task(
            name,
            number,
            entry["kind"],
            entry["look"],
            entry["steps"],
            entry["classes"],
            entry.get("sets", ""),
        )
        for number, (name, entry) in enumerate(recipe()["tasks"].items())
    }


def suite_tasks(suite: str) -> tuple[str, ...]:
    """The tasks of ``glyph8``, ``glyph14`` or ``glyph20`` in order; each begins with the smaller one's."""
    shipped, extra = recipe()["glyph8"], recipe()["glyph20_extra"]
    return tuple([*shipped, *extra][: int(suite.removeprefix("glyph"))])
