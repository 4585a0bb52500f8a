import sys

import pytest
from typer.testing import CliRunner

from mingle.cli import app
from mingle.errors import ConfigError, UnknownNameError
from mingle.evaluation import evaluate_run, scored_tasks
from mingle.state import MergeRun
from mingle.suites import open_suite
from mingle.tracking import TRACKERS, Tracker, open_tracker, track_evaluation, track_step


class Recorded(Tracker):
    def __init__(self, folder, name):
        super().__init__(folder, name)
        self.told, self.numbers = [], {}

    def settings(self, values):
        self.told.append(dict(values))

    def scalars(self, values, step):
        for name, value in values.items():
            self.numbers.setdefault(name, []).append((step, value))

    def close(self):
        self.numbers["closed"] = True


def read_tensorboard(folder, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / name))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def read_mlflow(folder, name):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("mingle").experiment_id
    (run,) = client.search_runs([experiment], f"attributes.run_name = '{name}'")
    assert run.info.status == "FINISHED"
    history = {tag: client.get_metric_history(run.info.run_id, tag) for tag in run.data.metrics}
    return {tag: sorted((m.step, m.value) for m in found) for tag, found in history.items()}


READERS = {"tensorboard": read_tensorboard, "mlflow": read_mlflow}


@pytest.fixture
def run(zoo, images, tmp_path):
    run = MergeRun.create(tmp_path / "run", zoo / "base", preset="learned", options={"steps": 3})
    for task in ("task1", "task2"):
        run.add(zoo / task, name=task, seeds=images)
    return run


def test_a_step_is_logged_with_its_losses(run, tmp_path):
    with Recorded(tmp_path / "log", "run") as tracker:
        for task in run.tasks:
            track_step(tracker, run, task)
    report = run.info("task2")["report"]
    assert tracker.numbers["loss/task2"] == list(enumerate(report["losses"]))
    assert tracker.numbers["seconds"] == [(i, run.info(t)["seconds"]) for i, t in enumerate(run.tasks)]
    assert tracker.numbers["energy/kept"][1] == (1, report["energy"]["kept"])
    assert tracker.told[0]["method"] == "mingle"
    assert tracker.told[0]["steps"] == 3
    assert tracker.numbers["closed"]


def test_an_evaluation_is_logged_step_by_step(run, shared_suite, tmp_path):
    found = evaluate_run(run, scored_tasks(open_suite(str(shared_suite)), run.tasks, run.base))
    tracker = Recorded(tmp_path / "log", "run")
    track_evaluation(tracker, found)
    assert tracker.numbers["accuracy/task1"] == [(0, found.matrix[0][0]), (1, found.matrix[1][0])]
    assert tracker.numbers["accuracy/task2"] == [(1, found.matrix[1][1])]
    assert tracker.numbers["accuracy/mean"][1] == (1, pytest.approx(sum(found.matrix[1]) / 2))
    assert tracker.numbers["metrics/acc"] == [(1, found.metrics["acc"])]


@pytest.mark.parametrize("kind", TRACKERS.names())
def test_what_is_logged_can_be_read_back_and_continued(kind, zoo, tmp_path):
    runs = [MergeRun.create(tmp_path / name / "it's", zoo / "base") for name in ("one", "other")]
    with open_tracker(f"{kind}:{tmp_path / 'log'}", runs[1]) as tracker:
        tracker.settings({"method": "average"})
    for step, value in enumerate((0.5, 0.25)):
        with open_tracker(f"{kind}:{tmp_path / 'log'}", runs[0]) as tracker:
            tracker.settings({"method": "mingle", "rank": 16, "lr": None})
            tracker.scalars({"accuracy/mean": value}, step)
            name = tracker.name
    assert name.startswith("it_s-")
    assert READERS[kind](tmp_path / "log", name) == {"accuracy/mean": [(0, 0.5), (1, 0.25)]}


def test_a_tracker_that_fails_takes_nothing_back(run, tmp_path):
    class Full(Recorded):
        def scalars(self, values, step):
            raise OSError("no space left")

    with pytest.raises(ConfigError, match="'task1' is merged and stays, but was not logged: no space left"):
        track_step(Full(tmp_path / "log", "run"), run, "task1")


def test_wrong_targets_and_missing_extras_are_named(run, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="expected kind:folder, such as tensorboard:logs, found 'mlflow'"):
        open_tracker("mlflow", run)
    with pytest.raises(UnknownNameError, match="tensorboard"):
        open_tracker("tensorbord:logs", run)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"needs its extra: pip install 'mingle-merge\[tensorboard\]'"):
        open_tracker(f"tensorboard:{tmp_path}", run)


def test_add_logs_only_where_it_is_told_to(zoo, tmp_path):
    MergeRun.create(tmp_path / "run", zoo / "base", method="average")
    for task, extra in (("task1", ["--track", f"tensorboard:{tmp_path / 'log'}"]), ("task2", [])):
        found = CliRunner().invoke(app, ["add", str(tmp_path / "run"), str(zoo / task), *extra])
        assert found.exit_code == 0, found.output
    seconds = MergeRun.open(tmp_path / "run").info("task1")["seconds"]
    (log,) = (tmp_path / "log").iterdir()
    assert read_tensorboard(tmp_path / "log", log.name) == {"seconds": [(0, pytest.approx(seconds))]}
