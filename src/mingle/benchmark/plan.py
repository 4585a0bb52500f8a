"""What a benchmark runs: contenders, the tables they stand in, and the cells that have to be computed."""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

from mingle.errors import ConfigError, UnknownNameError
from mingle.methods import METHODS, Method
from mingle.registry import Registry

ORDERS = tuple(range(42, 52))
"""Seeds of the task orders that the paper reports the mean of."""

LABELLED_ORDERS = 2
"""How many orders a method that trains on labels runs in, unless another number is asked for."""

FEW_TASKS = 8
"""Beyond this many tasks the paper scales task vectors by a smaller λ."""


@dataclass(frozen=True)
class Corruption:
    """A corruption of every seed and every test sample of a suite, at a severity of 1…5."""

    name: str
    severity: int = 5


@dataclass(frozen=True)
class SeedVariation:
    """A change to the pool of seeds alone, see `mingle.evaluation.vary`."""

    kind: str
    amount: float


@dataclass(frozen=True)
class Contender:
    """One row of a table.

    ``many_tasks``: further options for more than eight tasks (the paper's λ). ``point``: what the row
    varies, for curves and pivots, such as ``{"steps": 50}``.
    """

    label: str
    method: str
    preset: str = "default"
    options: Mapping[str, Any] = field(default_factory=dict)
    many_tasks: Mapping[str, Any] = field(default_factory=dict)
    point: Mapping[str, Any] = field(default_factory=dict)
    corruption: Corruption | None = None
    variation: SeedVariation | None = None

    def under(self, preset: str) -> "Contender":
        """The row with a family's own settings, where its method has them as a preset, for every option that
        neither the row nor its preset sets.
        """
        presets = METHODS.get(self.method).presets
        named = presets.get(self.preset, {})
        settings = {key: value for key, value in presets.get(preset, {}).items() if key not in named}
        return replace(self, options={**settings, **self.options})

    def build(self, tasks: int) -> Method[Any]:
        """The method with its options for that many tasks. Raises UnknownNameError, ConfigError."""
        changes = {**self.options, **(self.many_tasks if tasks > FEW_TASKS else {})}
        return METHODS.get(self.method).with_preset(self.preset, changes)


@dataclass(frozen=True)
class Table:
    """An experiment: its rows (the bounds, base and individual models, are always added) and what to show.

    ``columns``: metrics, most important first. ``pivot``: a key of every row's ``point`` that becomes the
    columns instead. ``curves``: keys whose values a metric is drawn against. ``first_tasks``: only so many of
    the suite's tasks, those that ``prefer`` names where the suite has them all. ``shuffled``: whether an
    order is the shuffle of its seed, or always the suite's own.
    """

    title: str
    contenders: tuple[Contender, ...]
    columns: tuple[str, ...] = ("acc", "bwt")
    pivot: str | None = None
    curves: tuple[str, ...] = ()
    first_tasks: int | None = None
    prefer: tuple[str, ...] = ()
    shuffled: bool = True

    def tasks(self, known: Sequence[str]) -> tuple[str, ...]:
        """The tasks of a suite that the table uses."""
        preferred = tuple(task for task in known if task in self.prefer)
        whole = self.prefer and len(preferred) == len(self.prefer)
        return preferred if whole else tuple(known[: self.first_tasks])


TABLES: Registry[Table] = Registry("table", "mingle.benchmark.tables")

BOUNDS = (Contender("base alone", "pretrained"), Contender("individual models", "individual"))
"""What merges are measured against."""

ORDERLESS = frozenset(bound.method for bound in BOUNDS)
"""Methods whose accuracies do not depend on the order of the tasks."""


@dataclass(frozen=True)
class Cell:
    """One merge of one suite in one order with one method, and its score: the unit of work and of resuming.

    ``fingerprint`` is the suite's. Cells that compute the same have the same ``key``, in whatever table.
    """

    suite: str
    fingerprint: str
    tasks: tuple[str, ...]
    seed: int
    method: str
    preset: str
    options: Mapping[str, Any]
    samples: int | None = None
    corruption: Corruption | None = None
    threads: int = 1
    variation: SeedVariation | None = None

    @property
    def key(self) -> str:
        """Hash of what the outcome depends on, the version of mingle included; not of the preset's name."""
        corruption = self.corruption and [self.corruption.name, self.corruption.severity]
        parts = [
            version("mingle-merge"),
            self.fingerprint,
            self.tasks,
            self.seed,
            self.method,
            self.options,
            self.samples,
        ]
        # Only where there is one: what was computed before there were any keeps its key.
        varied = [[self.variation.kind, self.variation.amount]] if self.variation else []
        text = json.dumps([*parts, corruption, self.threads, *varied], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]


def task_order(tasks: Sequence[str], seed: int) -> tuple[str, ...]:
    """The order of the paper: ``random.Random(seed).shuffle(tasks)``."""
    order = list(tasks)
    random.Random(seed).shuffle(order)
    return tuple(order)


def check(contenders: Sequence[Contender], tasks: int) -> None:
    """Raises ConfigError that lists everything wrong with the rows of a table, before anything runs."""
    problems = []
    for contender in contenders:
        try:
            contender.build(tasks)
        except ConfigError as error:
            problems.append(f"{contender.label}: {error}")
    labels = [contender.label for contender in contenders]
    problems += [
        f"{label}: two rows of that name" for label in sorted(set(labels)) if labels.count(label) > 1
    ]
    if problems:
        raise ConfigError("; ".join(problems))


def parse_orders(text: str) -> tuple[int, ...]:
    """``42-51`` or ``42,45`` as seeds of task orders. Raises ConfigError."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ConfigError(f"orders: expected seeds such as 42-51 or 42,45, found {text!r}")
        seeds += range(int(first), int(last or first) + 1)
    if len(set(seeds)) < len(seeds) or not seeds:
        raise ConfigError(f"orders: expected each seed once, found {text!r}")
    return tuple(seeds)


def select(
    contenders: Sequence[Contender], rows: Sequence[str] = (), presets: Sequence[str] = ()
) -> tuple[Contender, ...]:
    """The rows of the labels ``rows``, or of the methods of those names where no row is labelled so; each of
    default preset under ``presets`` too.

    Raises UnknownNameError.
    """
    labels, methods = ({getattr(row, key) for row in contenders} for key in ("label", "method"))
    for name in rows:
        if name not in labels | methods:
            raise UnknownNameError("row", name, sorted(labels | methods))
    wanted = set(rows)
    chosen = [row for row in contenders if not rows or row.label in wanted or row.method in wanted - labels]
    offered = {preset for row in chosen for preset in METHODS.get(row.method).presets}
    for preset in presets:
        if preset not in offered:
            raise UnknownNameError("preset", preset, sorted(offered))
    present = {(row.method, row.preset) for row in chosen}
    more = [
        replace(row, label=f"{row.label} ({preset})", preset=preset)
        for row in chosen
        for preset in presets
        if row.preset == "default" and not row.options
        if preset in METHODS.get(row.method).presets and (row.method, preset) not in present
    ]
    return (*chosen, *more)
