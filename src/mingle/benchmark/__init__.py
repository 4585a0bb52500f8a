"""Several methods on one suite, side by side, in several orders."""

from mingle.benchmark.executors import Executor, InProcess, ProcessPool, RayCluster, choose_executor
from mingle.benchmark.plan import (
    BOUNDS,
    ORDERS,
    TABLES,
    Cell,
    Contender,
    Corruption,
    SeedVariation,
    Table,
    parse_orders,
    select,
    task_order,
)
from mingle.benchmark.results_file import RESULTS_SCHEMA, read_results, write_json
from mingle.benchmark.run import run_table

__all__ = [
    "BOUNDS",
    "ORDERS",
    "RESULTS_SCHEMA",
    "TABLES",
    "Cell",
    "Contender",
    "Corruption",
    "Executor",
    "InProcess",
    "ProcessPool",
    "RayCluster",
    "SeedVariation",
    "Table",
    "choose_executor",
    "parse_orders",
    "read_results",
    "run_table",
    "select",
    "task_order",
    "write_json",
]
