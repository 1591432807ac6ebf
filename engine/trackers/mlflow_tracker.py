"""Sends metrics to MLflow: a server, a SQLite file or a folder.

Of the variables of the package, `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME` replace missing arguments, and
those of the authentication are used as always.
"""

import io
import os
import re
from collections.abc import Sequence
from typing import Any

from engine.base.extras import install_command
from engine.metrics.results import Table
from engine.trackers.addresses import check_no_password, without_password
from engine.trackers.csv_tracker import csv_text, table_lines
from engine.trackers.entries import Entry
from engine.trackers.pictures import picture
from engine.trackers.run_info import RunInfo
from engine.trackers.tracker import Tracker, as_text, package, require

_METRICS, _PARAMS = 1000, 100  # in one request; also 100 tags
_LONGEST = 5000  # characters of the value of a parameter or tag
_STATES = {"done": "FINISHED", "failed": "FAILED", "preempted": "KILLED", "interrupted": "KILLED"}
_KIND = {"mlflow.experimentKind": "custom_model_development"}  # of an experiment: the UI then opens its runs
_NOT_ALLOWED = re.compile(r"[^\w\-./ ]")  # in the name of a metric


class MLflow(Tracker):
    """Sends numbers, images, curves and histograms (as images), tables (as CSV artifacts), parameters and tags.

    Args:
        uri: address of the tracking server, such as sqlite:///mlflow.db; empty: MLFLOW_TRACKING_URI, or what MLflow
            uses without it.
        experiment: name of the experiment; empty: MLFLOW_EXPERIMENT_NAME, or the name of the config.
    """

    kind = "mlflow"

    def __init__(self, uri: str = "", experiment: str = ""):
        super().__init__(uri=uri, project=experiment)
        require("mlflow", install_command("mlflow"))
        check_no_password(uri, "MLFLOW_TRACKING_URI")
        self._uri = uri or os.environ.get("MLFLOW_TRACKING_URI", "")
        self._experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME", "")
        self._found: Any = None  # MlflowClient

    @property
    def destination(self) -> str:
        """The address of the server, without a password."""
        return without_password(self._uri) or "mlflow"

    @property
    def _client(self) -> Any:
        if self._found is None:
            self._found = package("mlflow").MlflowClient(tracking_uri=self._uri or None)
        return self._found

    @property
    def _run(self) -> str:
        return self.kept["run"]

    def start(self, run: RunInfo) -> None:
        """Continues the run, or creates it with its parameters; a setting that a resume changed becomes a tag."""
        entities = package("mlflow.entities")
        params = {name: text[:_LONGEST] for name, text in as_text(run.hyperparameters).items()}
        known: dict[str, str] = {}
        if "run" in self.kept:
            try:
                known = self._client.get_run(self._run).data.params
                self._client.update_run(self._run, status="RUNNING")
            except package("mlflow.exceptions").MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                self.kept.clear()
        if "run" not in self.kept:
            created = self._client.create_run(self._experiment_id(run), _ms(run.started), run_name=run.name)
            self.kept["run"] = created.info.run_id
        if "config" not in self.kept:
            self._client.log_artifact(self._run, os.fspath(run.config))
            self.kept["config"] = True
        new = [entities.Param(name, text) for name, text in params.items() if name not in known]
        changed = {f"changed.{name}": text for name, text in params.items() if known.get(name, text) != text}
        tags = {f"convoy.{name}": text for name, text in run.tags.items()} | changed
        if "git.commit" in run.tags:
            tags["mlflow.source.git.commit"] = run.tags["git.commit"]
        for begin in range(0, len(new), _PARAMS):
            self._client.log_batch(self._run, params=new[begin : begin + _PARAMS], synchronous=True)
        found = [entities.RunTag(name, text[:_LONGEST]) for name, text in tags.items()]
        for begin in range(0, len(found), _PARAMS):
            self._client.log_batch(self._run, tags=found[begin : begin + _PARAMS], synchronous=True)

    def write(self, entries: Sequence[Entry]) -> None:
        """Sends the numbers together, and every image and table by itself."""
        metric = package("mlflow.entities").Metric
        metrics = [
            metric(_NOT_ALLOWED.sub("_", tag), value, _ms(entry.time), entry.step)
            for entry in entries
            for tag, value in entry.numbers.items()
        ]
        for begin in range(0, len(metrics), _METRICS):
            self._client.log_batch(self._run, metrics=metrics[begin : begin + _METRICS], synchronous=True)
        self.kept["ended"] = max(map(_ms, (entry.time for entry in entries)))
        for entry in entries:
            for tag, value in entry.values.items():
                if isinstance(value, Table):
                    text = csv_text(table_lines(value))
                    self._client.log_text(self._run, text, f"tables/{_NOT_ALLOWED.sub('_', tag)}/{entry.step}.csv")
                elif (png := picture(value)) is not None:
                    self._write_image(tag, entry, png)

    def finish(self, state: str, reason: str) -> None:
        """Sets the status; the reason is a tag."""
        self._client.set_tag(self._run, "convoy.state", state)
        self._client.set_tag(self._run, "convoy.reason", reason[:_LONGEST])
        self._client.set_terminated(self._run, _STATES[state], self.kept.get("ended"))

    def _write_image(self, tag: str, entry: Entry, png: bytes) -> None:
        from PIL import Image

        image: Any = Image.open(io.BytesIO(png)).convert("RGB")
        key = _NOT_ALLOWED.sub("_", tag)
        self._client.log_image(self._run, image, key=key, step=entry.step, timestamp=_ms(entry.time), synchronous=True)

    def _experiment_id(self, run: RunInfo) -> str:
        name = self._experiment or run.project
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        try:
            return self._client.create_experiment(name, tags=_KIND)
        except package("mlflow.exceptions").MlflowException:  # another run has created it at the same time
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise
            return found.experiment_id


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
