"""The whole way to a suite, resumable at every stage; what is there already is not made again."""

from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

from mingle.errors import ConfigError, UnknownNameError
from mingle.suites._build.draws import generator
from mingle.suites._build.workers import Progress, choose_jobs, finetune_all, seconds_of, steps_left
from mingle.suites._glyph.build_folder import BuildFolder, load_bag, save_bag
from mingle.suites._glyph.fetch import check_tools, fetch, missing_packages, needs_npm
from mingle.suites._glyph.finetune import BATCH, TrainingSide, finetune, train_step
from mingle.suites._glyph.package import SHIPPED, package
from mingle.suites._glyph.pictures import write_data, write_train
from mingle.suites._glyph.recipe import SOURCE_SIZE, Task, all_tasks, suite_tasks
from mingle.suites._glyph.render import Material, render
from mingle.suites._glyph.tower import load_tower

SUITES = ("glyph8", "glyph14", "glyph20")


@dataclass(frozen=True)
class Plan:
    """What a build still has to do."""

    suite: str
    place: BuildFolder
    to_render: list[Task]
    to_tune: list[Task]
    to_draw: list[Task]
    jobs: int

    @property
    def steps(self) -> int:
        """Fine-tuning steps that are left."""
        return sum(self.steps_of(task) for task in self.to_tune)

    def steps_of(self, task: Task) -> int:
        """Fine-tuning steps that are left of one task."""
        return steps_left(self.place, task)

    def estimate(self) -> str:
        """What is left to do and how long it will take here: a few steps of fine-tuning are timed."""
        parts = []
        if needs_npm(self.place, self.to_render) or missing_packages(self.place, self.to_render):
            parts.append("up to 350 MB to download")
        if self.to_render:
            parts.append(f"{len(self.to_render)} tasks to render (half a minute)")
        if self.to_tune:
            longest = max(map(self.steps_of, self.to_tune))
            seconds = max(self.steps / self.jobs, longest) * seconds_per_step()
            parts.append(
                f"{len(self.to_tune)} tasks to fine-tune, {self.steps} steps of {BATCH} pictures in "
                f"{self.jobs} processes (about {seconds / 60:.0f} min)"
            )
        if self.to_draw:
            parts.append(f"training images of {len(self.to_draw)} tasks to draw")
        return "; ".join(parts) or "nothing left to do"

    def build(self, progress: Progress) -> Path:
        """See ``build``."""
        return build(self, progress)


def plan(suite: str, place: BuildFolder, *, train: bool = False, jobs: int | None = None) -> Plan:
    """Finds what is left to do. Raises UnknownNameError, and ConfigError when a tool is missing."""
    if suite not in SUITES:
        raise UnknownNameError("suite that can be built", suite, SUITES)
    tasks = [all_tasks()[name] for name in suite_tasks(suite)]
    extra = unmade_tasks(suite, place)
    to_tune = [task for task in extra if not place.model(task.name).exists()]
    to_draw = [task for task in tasks if train and not place.train(task.name).exists()]
    undrawn = [task for task in extra if not place.data(task.name).exists()]
    to_render = [
        task
        for task in tasks
        if task in (*to_tune, *to_draw, *undrawn) and not place.sources(task.name).exists()
    ]
    if to_render:
        check_extra()
        check_tools(place, to_render)
    return Plan(suite, place, to_render, to_tune, to_draw, choose_jobs(jobs, len(to_tune)))


def extra_tasks(suite: str) -> list[Task]:
    """The tasks of a suite that are not shipped."""
    return [all_tasks()[name] for name in suite_tasks(suite) if not (SHIPPED / name).exists()]


def unmade_tasks(suite: str, place: BuildFolder) -> list[Task]:
    """What ``extra_tasks`` gives until the suite is finished: then the work folder may be deleted."""
    extra = extra_tasks(suite)
    whole = ["suite.json", *(task.name for task in extra)]
    return [] if all((place.suite(suite) / name).exists() for name in whole) else extra


def check_extra() -> None:
    """Raises ConfigError when what rendering needs is not installed."""
    missing = [name for name in ("fontTools", "resvg_py") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"Python package {' and '.join(missing)} not found; rendering needs the extra 'glyph': "
            "pip install 'mingle-merge[glyph]'"
        )


def build(todo: Plan, progress: Progress) -> Path:
    """Does what is left; the folder of the suite. Raises ConfigError when another process builds there."""
    place, extra = todo.place, extra_tasks(todo.suite)
    with place.locked():
        prepare(todo, progress)
        for number, task in enumerate(todo.to_draw):
            progress(f"training images of {task.name}", number, len(todo.to_draw))
            write_train(load_bag(place.sources(task.name)), task, place.train(task.name))
        if todo.to_tune:
            work = partial(finetune, place, base=SHIPPED / "base")
            finetune_all(place, todo.to_tune, todo.jobs, work, progress)
        if extra and (todo.to_tune or not (place.suite(todo.suite) / "suite.json").exists()):
            progress(f"package {todo.suite}", 0, 1)
            package(place, todo.suite)
    return place.suite(todo.suite) if extra else SHIPPED


def prepare(todo: Plan, progress: Progress) -> None:
    """Downloads, sources, and the test and seed images of the tasks that are not shipped."""
    place, material = todo.place, Material(todo.place)
    fetch(place, todo.to_render, lambda what: progress(what, 0, 1))
    for number, task in enumerate(todo.to_render):
        progress(f"render {task.name}", number, len(todo.to_render))
        save_bag(place.sources(task.name), render(task, material))
    for task in unmade_tasks(todo.suite, place):
        if not place.data(task.name).exists():
            write_data(load_bag(place.sources(task.name)), task, place.data(task.name))


def seconds_per_step() -> float:
    """Times a few steps of one thread on blank pictures."""
    model = load_tower(SHIPPED / "base")
    blank = torch.zeros(2, 4, SOURCE_SIZE, SOURCE_SIZE, dtype=torch.uint8)
    by_class = [torch.tensor([0]), torch.tensor([1])]
    data = TrainingSide(blank, torch.ones(2, dtype=torch.bool), by_class, "glyph")
    head = torch.ones(2, len(model.get_parameter("visual_projection.weight")))
    return seconds_of(lambda step: train_step(model, head, data, generator(0, step)).backward())  # type: ignore[no-untyped-call]
