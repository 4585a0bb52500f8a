"""MLflow, in a SQLite file of the folder. Needs the extra ``mlflow``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mingle.tracking.base_tracker import Tracker

EXPERIMENT = "mingle"


class MLflow(Tracker):
    """Parameters and metrics; look at them with ``mlflow ui --backend-store-uri sqlite:///FOLDER/mlflow.db``."""

    def __init__(self, folder: Path, name: str) -> None:
        import sqlalchemy  # noqa: F401 – MLflow's own error does not say what to install
        from mlflow.entities import RunStatus
        from mlflow.tracking import MlflowClient

        super().__init__(folder, name)
        place = folder.resolve()
        self._client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
        known = self._client.get_experiment_by_name(EXPERIMENT)
        experiment = (
            known.experiment_id
            if known
            else self._client.create_experiment(EXPERIMENT, artifact_location=str(place / "artifacts"))
        )
        named = self._client.search_runs([experiment], f"attributes.run_name = '{name}'", max_results=1)
        self._run: str = (named or [self._client.create_run(experiment, run_name=name)])[0].info.run_id
        self._client.update_run(self._run, RunStatus.to_string(RunStatus.RUNNING))

    def settings(self, values: Mapping[str, Any]) -> None:
        """As parameters."""
        for name, value in values.items():
            self._client.log_param(self._run, name, value)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """As metrics at a step."""
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self) -> None:
        """Marks the run as finished."""
        self._client.set_terminated(self._run)


PLUGIN = MLflow
