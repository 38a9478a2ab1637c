"""An MLflow server, or store: an experiment, and in it for each run of the fleet one of MLflow's, found by its tag emo.run.

The experiment is `emo`, or that of MLFLOW_EXPERIMENT_NAME. What the server has already is asked first: so a run that is
watched twice, or after a restart, has each point once.
"""

import logging
import os
import time
from urllib.parse import urlsplit

# Before it is imported: it tells its makers of its use, unless told not to, and prints the server's address, with the
# password that may be in it; what fails is tried again here.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from cloud_app.watch.sinks.picture import Picture
from emo import __version__
from emo.errors import ConfigError
from emo.logs import printable

log = logging.getLogger("emo")
TAG = "emo.run"
_METRICS, _PARAMS = 1000, 100  # in a request


class MLflow:
    name = "mlflow"

    def __init__(self, uri: str) -> None:
        """Asks no server yet. Raises ConfigError on a `uri` that no client of MLflow can use."""
        self._login, at, _ = urlsplit(uri).netloc.rpartition("@")
        self._login += at
        self.where = f"MLflow at {self._shown(uri)}"
        self._run: _Run | None = None
        self._without: set[str] = set()  # runs
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        try:
            self._client = MlflowClient(tracking_uri=uri)
        except Exception as error:  # of many classes, one for each store
            raise ConfigError(f"--mlflow {self._shown(uri)}: {self._shown(error)}") from error

    def _shown(self, text: object) -> str:
        """Without user and password."""
        return printable(str(text).replace(self._login, "") if self._login else text, 500)

    def write(self, picture: Picture) -> int:
        try:
            if self._run is None or self._run.run != picture.run:
                self._run = _Run(self._client, picture)
            points = self._run.write(picture)
        except Exception as error:
            self._run = None  # what of it the server has taken is asked again
            raise OSError(self._shown(error)) from error
        if picture.over and picture.model is None and picture.run not in self._without:
            self._without.add(picture.run)
            log.info(
                "%s: run %s without its model, which is not on this machine (watch.yaml: models)",
                self.where,
                picture.run,
            )
        return points

    def close(self) -> None:
        self._run = None


class _Run:
    """A run at the server, begun if it is not there yet. `_known`: name -> the last step that is there."""

    def __init__(self, client: MlflowClient, picture: Picture) -> None:
        self._client, self.run = client, picture.run
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "emo"
        experiment = client.get_experiment_by_name(name)
        number = client.create_experiment(name) if experiment is None else experiment.experiment_id
        found = client.search_runs([number], f"tags.`{TAG}` = '{picture.run}'", max_results=1)
        if found:
            there = client.get_run(found[0].info.run_id)
        else:
            begun = int(1000 * min((point.time for point in picture.points), default=time.time()))
            tags = {TAG: picture.run, "emo.version": __version__, "mlflow.source.name": "emo watch"}
            there = client.create_run(number, start_time=begun, tags=tags, run_name=picture.run)
        self._id = there.info.run_id
        self._params, self._over = set(there.data.params), there.info.status == "FINISHED"
        self._known = {
            name: max(metric.step for metric in client.get_metric_history(self._id, name))
            for name in there.data.metrics
        }
        self._has_model = False

    def write(self, picture: Picture) -> int:
        new = [point for point in picture.points if point.step > self._known.get(point.name, -1)]
        for start in range(0, len(new), _METRICS):
            some = new[start : start + _METRICS]
            metrics = [Metric(point.name, point.value, int(1000 * point.time), point.step) for point in some]
            self._client.log_batch(self._id, metrics=metrics)
            self._known |= {point.name: point.step for point in some}
        params = [Param(name, str(value)) for name, value in picture.settings.items() if name not in self._params]
        for start in range(0, len(params), _PARAMS):
            self._client.log_batch(self._id, params=params[start : start + _PARAMS])
        self._params |= set(picture.settings)
        if picture.model is not None and not self._has_model:
            there = [file.path for file in self._client.list_artifacts(self._id)]
            if picture.model.name not in there:
                self._client.log_artifact(self._id, str(picture.model))
            self._has_model = True
        if picture.over and not self._over:
            ended = max((point.time for point in picture.points), default=time.time())
            self._client.set_terminated(self._id, "FINISHED", int(1000 * ended))
            self._over = True
        return len(new)
