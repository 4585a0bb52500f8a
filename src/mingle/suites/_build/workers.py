"""Fine-tuning of several tasks at a time, in processes of one thread each."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from typing import Protocol, TypeVar

import torch

from mingle.suites._build.folder import WorkFolder
from mingle.suites._build.training_state import stored_step

MOST_JOBS = 4
POLL_SECONDS = 1.0
Progress = Callable[[str, int, int], None]


class TunedTask(Protocol):
    """A task as far as workers know it."""

    @property
    def name(self) -> str:
        """Name of its model folder."""

    @property
    def steps(self) -> int:
        """Steps of fine-tuning."""


T = TypeVar("T", bound=TunedTask)


def choose_jobs(asked: int | None, tasks: int) -> int:
    """How many processes: as asked, or one per core up to four; never more than tasks, at least one."""
    return max(1, min(asked or min(MOST_JOBS, os.cpu_count() or 1), tasks))


def steps_left(place: WorkFolder, task: TunedTask) -> int:
    """Fine-tuning steps that are left of one task."""
    if place.model(task.name).exists():
        return 0
    return task.steps - stored_step(place.state(task.name))


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


def finetune_all(
    place: WorkFolder, tasks: Sequence[T], jobs: int, work: Callable[[T], None], progress: Progress
) -> None:
    """Does ``work(task)`` in processes of one thread each: a process does not change another's bits.

    How far they are is read from the states that they store.
    """
    pace = Pace(sum(task.steps for task in tasks))
    running = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _start_worker) as pool:
        try:
            waiting = {pool.submit(work, task) for task in tasks}
            while waiting:
                finished, waiting = wait(waiting, POLL_SECONDS)
                for one in finished:
                    one.result()
                tuned = sum(place.model(task.name).exists() for task in tasks)
                done = pace.total - sum(steps_left(place, task) for task in tasks)
                what = f"fine-tune, {tuned} of {len(tasks)} tasks done{pace.left(done)}"
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


def seconds_of(step: Callable[[int], object], steps: int = 3) -> float:
    """Times a few steps on one thread, after one that does not count."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        step(0)
        start = time.perf_counter()
        for number in range(1, steps + 1):
            step(number)
        return (time.perf_counter() - start) / steps
    finally:
        torch.set_num_threads(threads)
