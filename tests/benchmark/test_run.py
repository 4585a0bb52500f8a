"""Running a table: honest numbers, nothing computed twice, and a failure that stays where it happened."""

import json
import os
import shutil
import signal
import tempfile
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from mingle.benchmark import (
    BOUNDS,
    Contender,
    Corruption,
    InProcess,
    ProcessPool,
    RayCluster,
    SeedVariation,
    Table,
    read_results,
    run_table,
)
from mingle.benchmark import cell as cells
from mingle.errors import ConfigError, DivergedError
from mingle.methods import METHODS
from mingle.state import MergeRun
from mingle.suites import RawSamples, open_suite
from tests.benchmark.conftest import ROWS
from tests.state.helpers import in_child, status_of

TIMED = ("cost", "step_seconds", "bytes", "machine")


def numbers(results):
    """All that has to be equal wherever it was computed."""
    return [
        [{key: value for key, value in cell.items() if key not in TIMED} for cell in row["cells"]]
        for row in results["rows"]
    ]


class Never:
    """An executor that must not be asked for anything."""

    def run(self, work, missing):
        assert list(missing) == []
        return iter(())


class Failing(InProcess):
    """Stops after a number of cells, like a killed process."""

    def __init__(self, after):
        object.__setattr__(self, "after", after)

    def run(self, work, missing):
        for cell in missing[: self.after]:
            yield cell, work(cell)
        raise KeyboardInterrupt


def row(results, label):
    return next(row for row in results["rows"] if row["label"] == label)


def test_bounds_come_first_and_rows_run_in_every_order(finished):
    results, _ = finished
    assert [r["label"] for r in results["rows"]] == [r.label for r in (*BOUNDS, *ROWS)]
    assert [len(r["cells"]) for r in results["rows"]] == [1, 1, 2, 2, 2]
    assert [r["bound"] for r in results["rows"]] == [True, True, False, False, False]
    assert [order["seed"] for order in results["orders"]] == [42, 43]
    assert results["orders"][0]["tasks"] != results["orders"][1]["tasks"]


def test_metrics_follow_from_the_matrix_and_the_individual_models(finished):
    results, _ = finished
    own = results["bounds"]["individual"]
    for found in results["rows"][2:]:
        for cell in found["cells"]:
            final = cell["matrix"][-1]
            assert cell["metrics"]["acc"] == pytest.approx(sum(final) / 3)
            shares = [a / own[task] for a, task in zip(final, cell["tasks"], strict=True)]
            assert cell["metrics"]["normalised_acc"] == pytest.approx(sum(shares) / 3)
        two = [cell["metrics"]["acc"] for cell in found["cells"]]
        assert found["mean"]["acc"] == pytest.approx(sum(two) / 2)
        assert found["std"]["acc"] == pytest.approx(abs(two[0] - two[1]) / 2**0.5)


def test_bounds_are_the_base_and_the_models_themselves(finished):
    results, _ = finished
    alone, individual = results["rows"][:2]
    tasks = alone["cells"][0]["tasks"]
    assert dict(zip(tasks, alone["cells"][0]["matrix"][-1], strict=True)) == results["bounds"]["base"]
    assert (
        dict(zip(tasks, individual["cells"][0]["matrix"][-1], strict=True)) == results["bounds"]["individual"]
    )
    assert not individual["one_model"]
    assert individual["mean"]["mixed_acc"] is None


def test_every_result_says_where_it_comes_from(finished, shared_suite):
    results, _ = finished
    assert results["versions"]["torch"]
    tasks = {"task1", "task2", "task3"}
    assert results["suite"]["fingerprints"].keys() == {"base", *tasks, *(f"{task} data" for task in tasks)}
    for found in results["rows"]:
        assert found["settings"] is not None
        for cell in found["cells"]:
            assert len(cell["test_hashes"]) == 3
            assert cell["versions"] == results["versions"]
    assert len(results["examples"]) == 6
    said = row(results, "mingle")["cells"][0]["examples"]
    assert all(len(classes) == 2 for classes in said.values())


def test_nothing_is_computed_twice(finished, table, shared_suite):
    results, folder = finished
    again = run_table(table, str(shared_suite), Never(), folder, orders=(42, 43))
    assert again["rows"] == results["rows"]


def test_a_killed_benchmark_continues_and_ends_with_the_same_numbers(finished, table, shared_suite, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_table(table, str(shared_suite), Failing(3), tmp_path, orders=(42, 43))
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    assert len(kept) == 3
    resumed = run_table(table, str(shared_suite), InProcess(), tmp_path, orders=(42, 43))
    assert numbers(resumed) == numbers(finished[0])
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_a_damaged_cell_is_computed_again(finished, table, shared_suite, tmp_path):
    first = run_table(table, str(shared_suite), InProcess(), tmp_path, orders=(42,))
    path = tmp_path / "cells" / f"{first['rows'][3]['cells'][0]['key']}.json"
    path.write_text(path.read_text()[:100])
    again = run_table(table, str(shared_suite), InProcess(), tmp_path, orders=(42,))
    assert numbers(again) == numbers(first)


def test_a_failing_cell_is_told_and_stops_nobody(shared_suite, tmp_path, monkeypatch):
    average = METHODS.get("average")
    real = average.update

    def diverge(self, state, arrival, *rest):
        if arrival.name == "task2" and len(state.steps) == 1:
            raise DivergedError("adaptation: loss nan at step 3 of 50, lr 1; use a smaller lr")
        if arrival.name == "task2" and len(state.steps) == 2:
            raise ZeroDivisionError("a bug")
        return real(self, state, arrival, *rest)

    monkeypatch.setattr(average, "update", diverge)
    table = Table("t", (Contender("average", "average"), Contender("sum", "task_arithmetic")))
    results = run_table(table, str(shared_suite), InProcess(), tmp_path, orders=(42, 43, 44), samples=8)
    outcomes = {cell["tasks"].index("task2"): cell for cell in row(results, "average")["cells"]}
    assert outcomes[0]["status"] == "done"
    assert outcomes[1]["reason"].startswith("adaptation: loss nan at step 3")
    assert outcomes[2]["reason"].endswith("task 'task2' could not be merged into what is stored (a bug)")
    assert "ZeroDivisionError" in outcomes[2]["traceback"]
    assert "diverge" in outcomes[2]["traceback"]
    assert all(cell["status"] == "done" for cell in row(results, "sum")["cells"])
    done = [c["metrics"]["acc"] for c in row(results, "average")["cells"] if c["status"] == "done"]
    assert row(results, "average")["mean"]["acc"] == pytest.approx(sum(done) / len(done))
    monkeypatch.undo()  # what failed is tried again
    mended = run_table(table, str(shared_suite), InProcess(), tmp_path, orders=(42, 43, 44), samples=8)
    assert {cell["status"] for cell in row(mended, "average")["cells"]} == {"done"}


def test_results_without_individual_models_have_no_share_of_them(shared_suite, tmp_path, monkeypatch):
    def refuse(*_):
        raise DivergedError("no")

    monkeypatch.setattr(METHODS.get("individual"), "update", refuse)
    results = run_table(
        Table("t", ROWS[:1]), str(shared_suite), InProcess(), tmp_path, orders=(42,), samples=8
    )
    assert results["bounds"]["individual"] is None
    assert row(results, "individual models")["mean"] == {}
    assert row(results, "average")["mean"]["normalised_acc"] is None
    assert row(results, "average")["mean"]["acc"] is not None


@pytest.mark.parametrize("executor", [ProcessPool(2), RayCluster("local")], ids=["processes", "ray"])
def test_the_numbers_do_not_depend_on_who_computes_them(executor, finished, table, shared_suite, tmp_path):
    results = run_table(table, str(shared_suite), executor, tmp_path, orders=(42, 43))
    assert numbers(results) == numbers(finished[0])


def test_corruption_reaches_seeds_and_tests(finished, shared_suite, tmp_path):
    names = ("contrast", "gaussian_noise")
    rows = [replace(ROWS[2], label=name, corruption=Corruption(name)) for name in names]
    results = run_table(Table("t", tuple(rows)), str(shared_suite), InProcess(), tmp_path, orders=(42,))
    clean = row(finished[0], "mingle, batch gates")["cells"][0]
    for name in names:
        cell = row(results, name)["cells"][0]
        assert cell["test_hashes"] != clean["test_hashes"]
        assert cell["losses"] != clean["losses"]
        assert cell["metrics"]["normalised_acc"] is None  # the individual models saw clean images


def test_a_variation_reaches_the_seeds_alone(finished, shared_suite, tmp_path):
    kinds = {"few": 6, "crops": 6, "unbalanced": 4, "wrong": 0.5, "contrast": 5}
    analytic = Contender("closed form", "mingle", options={"rank": 4})
    rows = [replace(analytic, label=kind, variation=SeedVariation(kind, kinds[kind])) for kind in kinds]
    table = Table("t", (analytic, *rows))
    results = run_table(table, str(shared_suite), InProcess(), tmp_path, orders=(42,))
    plain = row(results, "closed form")["cells"][0]
    assert row(results, "closed form")["variation"] is None
    for kind, amount in kinds.items():
        cell = row(results, kind)["cells"][0]
        assert row(results, kind)["variation"] == {"kind": kind, "amount": amount}
        assert cell["status"] == "done", cell["reason"]
        assert cell["test_hashes"] == plain["test_hashes"]
        assert cell["matrix"] != plain["matrix"] or cell["gates"] != plain["gates"]
        assert cell["metrics"]["normalised_acc"] is not None


def test_wrong_seeds_are_those_of_the_next_task(shared_suite, tmp_path):
    found = SeedVariation("wrong", 1.0)
    wrong = Contender("wrong", "mingle", options={"rank": 4}, variation=found)
    run_table(Table("t", (wrong,)), str(shared_suite), InProcess(tmp_path / "runs"), tmp_path, orders=(42,))
    run = MergeRun.open(tmp_path / "runs" / "mingle")
    suite = open_suite(str(shared_suite))
    for task, other in (("task1", "task2"), ("task3", "task1")):
        ids = run.info(task)["report"]["seeds"]["ids"]
        assert ids
        assert set(ids) <= set(RawSamples(suite.seeds(other)).ids())


def test_a_variation_that_texts_cannot_have_is_the_reason_of_its_row(shared_suite, tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "suite_samples", lambda *_, **__: RawSamples(["some", "words"]))
    rows = (ROWS[0], replace(ROWS[1], label="crops", variation=SeedVariation("crops", 2)))
    results = run_table(Table("t", rows), str(shared_suite), InProcess(), tmp_path, orders=(42,))
    assert row(results, "average")["cells"][0]["status"] == "done"
    failed = row(results, "crops")["cells"][0]
    assert failed["reason"] == "seed variation crops: expected images, found text"


def test_tasks_of_a_table_in_another_order_than_the_suite(shared_suite, tmp_path):
    table = Table("t", ROWS[:1], prefer=("task3", "task1"))
    results = run_table(table, str(shared_suite), InProcess(), tmp_path, orders=(42,))
    assert [cell["status"] for r in results["rows"] for cell in r["cells"]] == ["done"] * 3
    assert results["bounds"]["base"].keys() == {"task1", "task3"}


def deadly(cell):
    """Work that takes its process with it."""
    if cell.method == "deadly":
        os._exit(1)
    return {"status": "done", "seed": cell.seed}


def test_a_process_that_dies_fails_its_own_cell():
    todo = [
        cells.Cell("s", "f", ("a",), seed, "deadly" if seed == 1 else "fine", "default", {})
        for seed in range(5)
    ]
    outcomes = {cell.seed: outcome for cell, outcome in ProcessPool(2).run(deadly, todo)}
    assert outcomes.keys() == set(range(5))
    assert "its process died" in outcomes.pop(1)["reason"]
    assert all(outcome == {"status": "done", "seed": seed} for seed, outcome in outcomes.items())


def test_what_a_killed_cell_leaves_goes_with_the_next(shared_suite, tmp_path, monkeypatch):
    """Not what a living process is using."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    print_of = cells.combined(cells.checkpoint_fingerprints(str(shared_suite), ("task1",)))
    cell = cells.Cell(str(shared_suite), print_of, ("task1",), 42, "average", "default", {}, samples=4)
    done, ready = os.pipe(), os.pipe()

    def stay():
        os.close(done[1])  # it ends with the test, however that ends
        with cells.temporary_run() as place:
            place.mkdir()
            os.write(ready[1], b"x")
            os.read(done[0], 1)

    neighbour = in_child(stay)
    os.read(ready[0], 1)
    [used] = tmp_path.glob("mingle-bench-*")
    with monkeypatch.context() as patch:
        patch.setattr(METHODS.get("average"), "update", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        assert status_of(in_child(lambda: cells.compute(cell))) == -signal.SIGKILL
    [left] = {*tmp_path.glob("mingle-bench-*")} - {used}
    assert (left / "run" / "mingle.json").exists()
    assert cells.compute(cell)["status"] == "done"
    assert [*tmp_path.glob("mingle-bench-*")] == [used]
    os.write(done[1], b"x")
    assert status_of(neighbour) == 0
    assert not [*tmp_path.iterdir()]


def test_other_data_is_another_suite(suite_copy):
    before = cells.combined(cells.checkpoint_fingerprints(str(suite_copy("a")), ("task1",)))
    assert cells.combined(cells.checkpoint_fingerprints(str(suite_copy("b")), ("task1",))) == before
    for key, name in (("test_images", "c"), ("test_labels", "d"), ("seed_images", "e")):
        folder = suite_copy(name)
        path = folder / "data" / "task1.safetensors"
        data = load_file(path)
        data[key] = data[key].clone()
        data[key][0] += 1
        save_file(data, path)
        assert cells.combined(cells.checkpoint_fingerprints(str(folder), ("task1",))) != before


@pytest.fixture
def suite_copy(shared_suite, tmp_path):
    def make(name):
        shutil.copytree(shared_suite, tmp_path / name)
        return tmp_path / name

    return make


def test_a_suite_that_changed_is_not_mixed_up(shared_suite, monkeypatch):
    cell = cells.Cell(str(shared_suite), "0" * 64, ("task1",), 42, "average", "default", {})
    assert "is not the one the benchmark started with" in cells.compute(cell)["reason"]


def test_everything_that_is_missing_is_listed_before_anything_runs(shared_suite, tmp_path):
    suite = tmp_path / "suite"
    suite.mkdir()
    for path in shared_suite.iterdir():
        if path.name != "task2":
            (suite / path.name).symlink_to(path)
    corrupted = replace(ROWS[0], label="corrupted", corruption=Corruption("contrast"))
    with pytest.raises(ConfigError, match=r"suite 'own': 1 to fetch first:\n.*task2"):
        run_table(Table("t", (*ROWS, corrupted)), str(suite), Never(), tmp_path, orders=(42,))
    assert not (tmp_path / "cells").exists()


def test_runs_are_kept_on_request(shared_suite, tmp_path):
    executor = InProcess(tmp_path / "runs")
    run_table(Table("t", ROWS[:1]), str(shared_suite), executor, tmp_path, orders=(42,), samples=8)
    assert MergeRun.open(tmp_path / "runs" / "average").verify() == []


def test_a_results_file_of_another_schema_is_refused(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"schema": 99}))
    with pytest.raises(ConfigError, match="expected results of schema 2, found 99"):
        read_results(path)
    with pytest.raises(ConfigError, match="not a readable results file"):
        read_results(tmp_path / "none.json")
