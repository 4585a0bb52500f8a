"""Where cells are computed: in this process, in a pool of processes, or on a Ray cluster.

An executor yields every cell with its outcome as soon as it is there. The numbers do not depend on the
choice: a cell is computed by the same function with the same number of threads everywhere.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mingle.benchmark.plan import Cell
from mingle.errors import ConfigError
from mingle.methods.base_method import Progress, labelled, silent

Outcome = dict[str, Any]
Work = Callable[..., Outcome]

ATTEMPTS = 2
"""How often a cell is tried whose process died, taking its neighbours with it."""


class Executor(Protocol):
    """Computes cells."""

    def run(self, work: Work, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Outcome]]:
        """Every cell with its outcome, in the order in which they are finished."""
        ...


@dataclass(frozen=True)
class InProcess:
    """One cell after the other, here; ``keep``: the folder in which the merged runs stay."""

    keep: Path | None = None
    progress: Progress = silent

    def run(self, work: Work, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Outcome]]:
        """Every cell with its outcome, in order."""
        for number, cell in enumerate(cells, start=1):
            name = cell.method if cell.preset == "default" else f"{cell.method}-{cell.preset}"
            progress = labelled(self.progress, f"[{number}/{len(cells)}] {name}")
            yield cell, work(cell, self.keep and self.keep / name, progress)


class ProcessPool:
    """``workers`` processes on this machine. A process that dies (out of memory, say) fails its own cell."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(self, work: Work, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Outcome]]:
        """Every cell with its outcome; never more cells under way than processes."""
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        attempts = {cell.key: 0 for cell in cells}
        waiting = list(cells)  # first those that were under way when a pool broke: one of them is to blame
        while waiting:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(self.workers, context, _end_with_parent) as pool:
                yield from self._drain(pool, work, waiting, attempts)

    def _drain(
        self, pool: ProcessPoolExecutor, work: Work, waiting: list[Cell], attempts: dict[str, int]
    ) -> Iterator[tuple[Cell, Outcome]]:
        """Until nothing waits, or the pool is broken: then what was under way waits again, or has failed."""
        running: dict[Future[Outcome], Cell] = {}
        broken = False
        while running or (waiting and not broken):
            while waiting and not broken and len(running) < self._allowed(waiting[0], running, attempts):
                try:
                    future = pool.submit(work, waiting[0])
                except BrokenProcessPool:
                    broken = True
                else:
                    running[future] = waiting.pop(0)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell = running.pop(future)
                try:
                    yield cell, future.result()
                except BrokenProcessPool:
                    broken = True
                    attempts[cell.key] += 1
                    if attempts[cell.key] < ATTEMPTS:
                        waiting.insert(0, cell)
                    else:
                        yield cell, failure("its process died; out of memory? Try fewer --workers")

    def _allowed(
        self, cell: Cell, running: Mapping[Future[Outcome], Cell], attempts: Mapping[str, int]
    ) -> int:
        """How many cells may be under way with this one: a suspect is alone, and fails nobody but itself."""
        suspects = attempts[cell.key] or any(attempts[other.key] for other in running.values())
        return 1 if suspects else self.workers


def _end_with_parent() -> None:
    """In a worker: a benchmark that is killed leaves no process behind that goes on computing."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class RayCluster:
    """A Ray cluster, or ``local``: Ray on this machine. Needs the extra ``ray``."""

    def __init__(self, address: str) -> None:
        self.address = address

    def run(self, work: Work, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Outcome]]:
        """Every cell with its outcome. Raises ConfigError without Ray or without the cluster."""
        try:
            import ray
        except ImportError as error:
            raise ConfigError("--ray needs Ray: pip install 'mingle-merge[ray]'") from error
        try:
            ray.init(
                None if self.address == "local" else self.address,
                include_dashboard=False,
                log_to_driver=False,
                runtime_env={"env_vars": _environment()},
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(f"--ray {self.address}: no cluster there ({error})") from error
        try:
            remote = ray.remote(work)
            running = {remote.options(num_cpus=cell.threads).remote(cell): cell for cell in cells}
            while running:
                (done,), _ = ray.wait(list(running), num_returns=1)
                cell = running.pop(done)
                try:
                    yield cell, ray.get(done)
                except ray.exceptions.RayError as error:
                    yield cell, failure(f"Ray: {str(error).splitlines()[0]}")
        finally:
            ray.shutdown()


def _environment() -> dict[str, str]:
    """What other machines have to know of this one's environment."""
    known = {name: os.environ[name] for name in ("MINGLE_DATA", "MINGLE_CACHE") if name in os.environ}
    return {"OMP_WAIT_POLICY": "PASSIVE", **known}


def failure(reason: str) -> Outcome:
    """The outcome of a cell that has no numbers, and why."""
    return {"status": "failed", "reason": reason}


def choose_executor(workers: int | None, ray: str | None, threads: int) -> Executor:
    """Ray where an address is given, else ``workers`` processes, by default one for ``threads`` cores."""
    if ray is not None:
        return RayCluster(ray)
    return ProcessPool(workers or max(1, (os.cpu_count() or 1) // threads))
