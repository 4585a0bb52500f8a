"""Several methods on one suite, side by side."""

from mingle.benchmark.comparison import DEMO, Contender, compare
from mingle.benchmark.results_file import RESULTS_SCHEMA, read_results, write_results

__all__ = ["DEMO", "RESULTS_SCHEMA", "Contender", "compare", "read_results", "write_results"]
