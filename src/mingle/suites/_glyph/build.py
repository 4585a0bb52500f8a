"""The whole way to a suite, resumable at every stage; what is there already is not made again."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from mingle.errors import ConfigError, UnknownNameError
from mingle.suites._glyph.build_folder import BuildFolder, load_bag, save_bag
from mingle.suites._glyph.fetch import check_tools, fetch, missing_packages, needs_npm
from mingle.suites._glyph.finetune import BATCH, TrainingSide, finetune, train_step
from mingle.suites._glyph.package import SHIPPED, package
from mingle.suites._glyph.pictures import write_data, write_train
from mingle.suites._glyph.recipe import SOURCE_SIZE, Task, all_tasks, generator, suite_tasks
from mingle.suites._glyph.render import Material, render
from mingle.suites._glyph.tower import load_tower
from mingle.suites._glyph.training_state import stored_step

SUITES = ("glyph8", "glyph14", "glyph20")
MOST_JOBS = 4
POLL_SECONDS = 1.0
Progress = Callable[[str, int, int], None]


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
        if self.place.model(task.name).exists():
            return 0
        return task.steps - stored_step(self.place.state(task.name))

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


def plan(suite: str, place: BuildFolder, *, train: bool = False, jobs: int | None = None) -> Plan:
    """Finds what is left to do. Raises UnknownNameError, and ConfigError when a tool is missing."""
    if suite not in SUITES:
        raise UnknownNameError("suite that can be built", suite, SUITES)
    tasks = [all_tasks()[name] for name in suite_tasks(suite)]
    extra = extra_tasks(suite)
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
    most = jobs or min(MOST_JOBS, os.cpu_count() or 1)
    return Plan(suite, place, to_render, to_tune, to_draw, max(1, min(most, len(to_tune))))


def extra_tasks(suite: str) -> list[Task]:
    """The tasks of a suite that are not shipped."""
    return [all_tasks()[name] for name in suite_tasks(suite) if not (SHIPPED / name).exists()]


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
    place.glyph.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(place.glyph / "build.lock", timeout=0):
            prepare(todo, progress)
            for number, task in enumerate(todo.to_draw):
                progress(f"training images of {task.name}", number, len(todo.to_draw))
                write_train(load_bag(place.sources(task.name)), task, place.train(task.name))
            if todo.to_tune:
                finetune_all(todo, progress)
            if extra and (todo.to_tune or not (place.suite(todo.suite) / "suite.json").exists()):
                progress(f"package {todo.suite}", 0, 1)
                package(place, todo.suite)
    except Timeout as error:
        raise ConfigError(f"{place.glyph}: another process is building there; wait for it") from error
    return place.suite(todo.suite) if extra else SHIPPED


def prepare(todo: Plan, progress: Progress) -> None:
    """Downloads, sources, and the test and seed images of the tasks that are not shipped."""
    place, material = todo.place, Material(todo.place)
    fetch(place, todo.to_render, lambda what: progress(what, 0, 1))
    for number, task in enumerate(todo.to_render):
        progress(f"render {task.name}", number, len(todo.to_render))
        save_bag(place.sources(task.name), render(task, material))
    for task in extra_tasks(todo.suite):
        if not place.data(task.name).exists():
            write_data(load_bag(place.sources(task.name)), task, place.data(task.name))


class Pace:
    """How long the rest takes, from the steps done since the first that were seen to be done."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.first: tuple[float, int] | None = None

    def left(self, done: int) -> str:
        """', about 7 min left', or nothing as long as there is no pace to tell it from."""
        now = time.monotonic()
        if self.first is None:
            self.first = (now, done)
        start, before = self.first
        if done == before:
            self.first = (now, done)  # what is loaded and prepared first is no pace
            return ""
        return f", about {(self.total - done) * (now - start) / (done - before) / 60:.0f} min left"


def finetune_all(todo: Plan, progress: Progress) -> None:
    """Fine-tunes in processes of one thread each: a process does not change another's bits.

    How far they are is read from the states that they store.
    """
    place, pace = todo.place, Pace(sum(task.steps for task in todo.to_tune))
    running = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(todo.jobs, context, _start_worker) as pool:
        try:
            waiting = {pool.submit(finetune, place, task, SHIPPED / "base") for task in todo.to_tune}
            while waiting:
                finished, waiting = wait(waiting, POLL_SECONDS)
                for one in finished:
                    one.result()
                tuned = sum(place.model(task.name).exists() for task in todo.to_tune)
                done = pace.total - todo.steps
                what = f"fine-tune, {tuned} of {len(todo.to_tune)} tasks done{pace.left(done)}"
                progress(what, done, pace.total)
        except BaseException:
            # What the workers stored is kept; without this, leaving the pool would wait for their tasks.
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in set(multiprocessing.active_children()) - running:
                worker.terminate()
            raise


def _start_worker() -> None:
    """One thread, the same on every machine; Ctrl-C ends a worker without a traceback."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def seconds_per_step(steps: int = 4) -> float:
    """Times a few steps of one thread on blank pictures, after one that does not count."""
    model, threads = load_tower(SHIPPED / "base"), torch.get_num_threads()
    blank = torch.zeros(2, 4, SOURCE_SIZE, SOURCE_SIZE, dtype=torch.uint8)
    by_class = [torch.tensor([0]), torch.tensor([1])]
    data = TrainingSide(blank, torch.ones(2, dtype=torch.bool), by_class, "glyph")
    head = torch.ones(2, len(model.get_parameter("visual_projection.weight")))
    torch.set_num_threads(1)
    try:
        train_step(model, head, data, generator(0)).backward()  # type: ignore[no-untyped-call]
        start = time.perf_counter()
        for step in range(steps):
            train_step(model, head, data, generator(0, step)).backward()  # type: ignore[no-untyped-call]
        return (time.perf_counter() - start) / steps
    finally:
        torch.set_num_threads(threads)
