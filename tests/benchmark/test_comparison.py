"""The comparison behind the demo: honest numbers, provenance, and runs that stay."""

import json

import pytest

from mingle.benchmark import DEMO, Contender, compare, read_results, write_results
from mingle.errors import ConfigError
from mingle.state import MergeRun
from mingle.suites import open_suite


@pytest.fixture(scope="module")
def results(request, tmp_path_factory):
    suite = open_suite(request.getfixturevalue("shared_suite"))
    folder = tmp_path_factory.mktemp("runs")
    return compare(suite, DEMO, folder, limit=16, command="here"), folder


def test_one_row_per_contender_with_matrices_and_metrics(results):
    found, _ = results
    assert [row["label"] for row in found["rows"]] == [c.label for c in DEMO]
    for row in found["rows"]:
        assert [len(line) for line in row["matrix"]] == [1, 2, 3]
        assert row["metrics"]["acc"] == pytest.approx(sum(row["matrix"][-1]) / 3)
        own = found["individual"]
        expected = sum(a / i for a, i in zip(row["matrix"][-1], own, strict=True)) / 3
        assert row["metrics"]["normalised_acc"] == pytest.approx(expected)


def test_bounds(results):
    found, _ = results
    rows = {row["label"]: row for row in found["rows"]}
    assert rows["individual models"]["matrix"][-1] == found["individual"]
    assert rows["individual models"]["metrics"]["mixed_acc"] is None
    assert not rows["individual models"]["one_model"]
    assert rows["base alone"]["metrics"]["bwt"] == 0


def test_per_sample_gates_score_the_same_on_a_mixed_stream(results):
    found, _ = results
    row = next(row for row in found["rows"] if row["label"] == "mingle")
    assert row["metrics"]["mixed_acc"] == pytest.approx(row["metrics"]["acc"])


def test_provenance_settings_and_gates(results):
    found, _ = results
    assert found["versions"]["torch"]
    assert found["samples_per_task"] == 16
    assert found["test_samples"] == 24
    row = next(row for row in found["rows"] if row["label"] == "mingle (reference)")
    assert row["settings"]["gate_reduction"] == "batch"
    assert row["settings"]["rank"] == 16
    gates = row["gates"]
    assert len(gates["mean"]) == len(gates["layers"]) == 12
    assert all(len(layer) == 3 and len(layer[0]) == 3 for layer in gates["mean"])
    assert len(found["examples"]) == 6


def test_runs_stay_and_open(results):
    _, folder = results
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        c.label.replace(" ", "-").replace("(", "").replace(")", "") for c in DEMO
    )
    assert MergeRun.open(folder / "mingle-reference").verify() == []


def test_same_seed_same_numbers(shared_suite, tmp_path):
    suite, contenders = open_suite(shared_suite), (Contender("mingle", "mingle", options={"steps": 3}),)
    one, two = (compare(suite, contenders, tmp_path / name, limit=16) for name in ("a", "b"))
    for key in ("matrix", "metrics", "losses", "gates", "energy"):
        assert one["rows"][0][key] == two["rows"][0][key]


def test_results_file_round_trip_and_refusals(results, tmp_path):
    found, _ = results
    path = tmp_path / "results.json"
    write_results(found, path)
    assert read_results(path) == json.loads(json.dumps(found))
    path.write_text('{"schema": 99}')
    with pytest.raises(ConfigError, match="expected results of schema 1, found 99"):
        read_results(path)
    with pytest.raises(ConfigError, match=r"results\.json: not a readable results file"):
        read_results(tmp_path / "no" / "results.json")
