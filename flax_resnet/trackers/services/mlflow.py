"""MLflow: settings are parameters, metrics have the names of TensorBoard, files are artifacts.

The store is that of MLflow itself: $MLFLOW_TRACKING_URI, or a database in the current folder.
"""

import pathlib
import re
import time
from collections.abc import Mapping
from typing import Any

from flax_resnet.trackers.tracker import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    TrackedRun,
    Tracker,
    TrackerRow,
)

STATUS = {FINISHED: "FINISHED", INTERRUPTED: "KILLED", FAILED: "FAILED"}
BATCH = 100  # largest number of parameters of a call; MLflow allows no more


class MLflowTracker:
    """A run of MLflow; see `Tracker`.

    Args:
      client: MLflow's client.
      run_id: the id of the run.
    """

    def __init__(self, client: Any, run_id: str) -> None:
        self.run_id = run_id
        self._client = client
        # The address of a server may hold a password.
        store = re.sub(r"//[^/@\s]*@", "//", client.tracking_uri)
        self.address = f"run {run_id} in {store}"

    def describe(self, facts: Mapping[str, str]) -> None:
        """Store texts as tags."""
        for key, text in facts.items():
            self._client.set_tag(self.run_id, key, text)

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Store metrics. Characters of a split expression that MLflow refuses become underscores."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        names = {key: re.sub(r"[^\w./ -]", "_", key, flags=re.ASCII) for key in metrics}
        batch = [Metric(names[key], value, now, step) for key, value in metrics.items()]
        self._client.log_batch(self.run_id, metrics=batch)

    def log_file(self, path: pathlib.Path) -> None:
        """Store a file as an artifact."""
        self._client.log_artifact(self.run_id, str(path))

    def finish(self, status: str) -> None:
        """End the run."""
        self._client.set_terminated(self.run_id, STATUS[status])


def open_run(run: TrackedRun) -> Tracker:
    """Open an earlier run that still exists, or else a new one in the experiment `run.project`."""
    from mlflow import MlflowClient
    from mlflow.entities import Param

    client = MlflowClient()
    settings, earlier = {key: str(value) for key, value in run.settings.items()}, None
    if run.run_id:
        earlier = _existing(client, run.run_id)
    if earlier:
        run_id, stored = run.run_id, earlier.data.params
        client.update_run(run_id, status="RUNNING")
    else:
        run_id, stored = client.create_run(_experiment(client, run.project), run_name=run.name), {}
        run_id = run_id.info.run_id
    new = [Param(key, value) for key, value in settings.items() if key not in stored]
    for first in range(0, len(new), BATCH):
        client.log_batch(run_id, params=new[first : first + BATCH])
    tracker = MLflowTracker(client, run_id)
    # A parameter cannot change, but a longer run or --resume=force changes settings.
    tracker.describe({k: text for k, text in settings.items() if stored.get(k, text) != text})
    return tracker


def _existing(client: Any, run_id: str) -> Any:
    """Return a run, or None if it does not exist or was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def _experiment(client: Any, name: str) -> str:
    """Return the id of an experiment, which is created if it does not exist."""
    from mlflow.exceptions import MlflowException

    if found := client.get_experiment_by_name(name):
        return found.experiment_id
    try:
        return client.create_experiment(name)
    except MlflowException as error:  # another run has just created it
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return client.get_experiment_by_name(name).experiment_id


ROWS = (
    TrackerRow(
        name="mlflow",
        help="MLflow, in the store $MLFLOW_TRACKING_URI",
        package="mlflow",
        secrets=("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
        open=open_run,
    ),
)
