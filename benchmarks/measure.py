"""Seconds and memory of the things that `cost.py` and `growth.py` compare, and their common options."""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch

GB = 2**30


class Settings(NamedTuple):
    """What the command line says."""

    repetitions: int
    blocks: int
    clock: Callable[[], float]
    quick: bool = False


def options(description: str | None) -> argparse.ArgumentParser:
    """The options of both."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--wall", action="store_true")
    return parser


def settings(given: argparse.Namespace) -> Settings:
    """The settings, and the number of threads set."""
    torch.set_num_threads(given.threads)
    clock = time.perf_counter if given.wall else time.process_time
    return Settings(given.repetitions, given.blocks, clock)


def in_turn(sides: Mapping[str, Callable[[], object]], given: Settings) -> dict[str, float]:
    """Median seconds of every side; one run of each to warm up, then all of them in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(given.repetitions + 1):
        for name, side in sides.items():
            started = given.clock()
            side()
            if repetition:
                seconds[name].append(given.clock() - started)
    return {name: statistics.median(found) for name, found in seconds.items()}


def peak() -> float:
    """Largest resident memory of this process so far, in GB; getrusage would count its parent's too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / GB


def memory_of(work: Callable[..., object], *arguments: object) -> float:
    """GB that a function takes beyond the imports, in a new process of its own with two threads."""
    answer, question = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_watched, args=(question, work, arguments))
    process.start()
    question.close()
    found: float = answer.recv()
    process.join()
    return found


def _watched(question: Connection, work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(2)
    before = peak()
    work(*arguments)
    question.send(peak() - before)
