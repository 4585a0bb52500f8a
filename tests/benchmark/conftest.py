"""A suite of three tiny tasks, and a table of quick rows."""

import pytest

from mingle.benchmark import Contender, InProcess, Table, run_table

QUICK = {"steps": 2, "rank": 4}
ROWS = (
    Contender("average", "average"),
    Contender("mingle", "mingle", options=QUICK),
    Contender("mingle, batch gates", "mingle", "reference", options=QUICK),
)


@pytest.fixture(scope="session")
def table():
    return Table("Quick", ROWS, ("acc", "bwt", "mixed_acc"))


@pytest.fixture(scope="session")
def finished(table, shared_suite, tmp_path_factory):
    """Results of the quick table in two orders, and the folder of its cells."""
    folder = tmp_path_factory.mktemp("bench")
    return run_table(table, str(shared_suite), InProcess(), folder, orders=(42, 43)), folder
