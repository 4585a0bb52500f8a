"""Running a table: which cells are missing, who computes them, and what comes out."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mingle.backbones import BACKBONES
from mingle.benchmark.cell import checkpoint_fingerprints, combined, compute
from mingle.benchmark.executors import Executor, Outcome
from mingle.benchmark.plan import (
    BOUNDS,
    LABELLED_ORDERS,
    ORDERLESS,
    Cell,
    Contender,
    Table,
    check,
    task_order,
)
from mingle.benchmark.results import assemble
from mingle.benchmark.results_file import write_json
from mingle.errors import ConfigError
from mingle.methods.base_method import Progress, silent
from mingle.suites import Suite, open_suite


class CellStore:
    """Outcomes by key in a folder, each written whole or not at all. Failed cells are computed again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, cell: Cell) -> Outcome | None:
        """The stored outcome; None when there is none, or only a failure or a damaged file."""
        try:
            outcome: Outcome = json.loads(self._path(cell).read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return outcome if outcome.get("status") == "done" else None

    def put(self, cell: Cell, outcome: Outcome) -> Outcome:
        """Stores an outcome under the cell's key; returns it as it will be read."""
        write_json(outcome, self._path(cell))
        stored: Outcome = json.loads(self._path(cell).read_text("utf-8"))
        return stored

    def _path(self, cell: Cell) -> Path:
        return self.folder / f"{cell.key}.json"


def prepare(table: Table, suite: Suite, contenders: Sequence[Contender]) -> tuple[str, ...]:
    """The tasks that the table uses, after everything that is missing or wrong has been listed.

    Raises ConfigError.
    """
    tasks = table.tasks(suite.tasks)
    check(contenders, len(tasks))
    suite.check(tasks, labels=any(row.build(len(tasks)).needs_labels for row in contenders))
    if any(row.corruption for row in contenders) and isinstance(suite.test(tasks[0])[0][0], str):
        raise ConfigError(f"suite {suite.name!r} is text: a table of image corruptions does not apply to it")
    return tasks


def run_table(
    table: Table,
    suite_source: str,
    executor: Executor,
    folder: Path,
    *,
    orders: Sequence[int],
    labelled_orders: int | None = None,
    samples: int | None = None,
    threads: int = 1,
    contenders: Sequence[Contender] | None = None,
    command: str = "",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Computes what ``folder`` does not hold yet, and returns the results of the whole table.

    Every contender runs once per order (those that train on labels only the first ``labelled_orders``, by
    default two), the bounds in the first. Raises ConfigError before anything runs; a failed cell is a result.
    """
    suite = open_suite(suite_source)
    preset = BACKBONES.get(suite.backbone).preset
    labelled = labelled_orders or LABELLED_ORDERS
    rows = (*BOUNDS, *(row.under(preset) for row in contenders or table.contenders))
    tasks = prepare(table, suite, rows)
    fingerprints = checkpoint_fingerprints(suite_source, tasks)

    def cells_of(row: Contender) -> list[Cell]:
        method = row.build(len(tasks))
        count = 1 if row.method in ORDERLESS else labelled if method.needs_labels else None
        return [
            Cell(
                suite=suite_source,
                fingerprint=combined(fingerprints),
                tasks=task_order(tasks, seed) if table.shuffled else tasks,
                seed=seed,
                method=row.method,
                preset=row.preset,
                options=method.options.model_dump(),
                samples=samples,
                corruption=row.corruption,
                threads=threads,
                variation=row.variation,
            )
            for seed in orders[:count]
        ]

    plan = [(row, cells_of(row)) for row in rows]
    store = CellStore(folder / "cells")
    outcomes = _compute_missing([cell for _, cells in plan for cell in cells], store, executor, progress)
    return assemble(table, suite, plan, outcomes, fingerprints, command)


def _compute_missing(
    cells: Sequence[Cell], store: CellStore, executor: Executor, progress: Progress
) -> Mapping[str, Outcome]:
    unique = {cell.key: cell for cell in cells}
    outcomes = {key: found for key, cell in unique.items() if (found := store.get(cell)) is not None}
    progress("cells", len(outcomes), len(unique))
    for cell, outcome in executor.run(compute, [cell for key, cell in unique.items() if key not in outcomes]):
        outcomes[cell.key] = store.put(cell, outcome)
        progress(f"cells, last {cell.method} order {cell.seed}", len(outcomes), len(unique))
    return outcomes
