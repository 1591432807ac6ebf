"""Sends a run to one tracker with its real package, and reads back what it holds.

python -m benchmarks.trackers.checks NAME FOLDER

It runs in the environment of the package. A run of the digits is trained, resumed and pushed. The program ends with an
AssertionError if a step is missing or there twice, or if the settings, the end or an image of the run is missing.
"""

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.metrics.results import Bins, Curve, Image, Table
from engine.trackers.push import KINDS
from engine.trackers.tracker import package

PROJECT = "checks"
UNREACHABLE = "http://127.0.0.1:9"  # the port of the service `discard`, on which nothing listens
BLOCK, FULL, LAST = 32768, 1, 4  # bytes, and kinds of parts, of a log of LevelDB
TAG, IMAGE = "train/loss", "probe/picture"


class Probe:
    """A hook that returns one result of each kind."""

    def run(self, trainer: Any, state: Any, step: int) -> dict[str, Any]:
        """Returns the results."""
        x = np.linspace(0, 1, 20)
        return {
            "picture": Image(np.full((8, 8, 3), step % 256, np.uint8)),
            "weights": Bins(np.arange(4.0), np.array([1, step, 2])),
            "roc": Curve(x, x**2),
            "worst": Table({"example": [1, 2], "name": ["a", "b"]}),
        }


def train(run: Path, epochs: int, name: str, **arguments: str) -> str:
    """Trains a run, or resumes it; returns what it printed."""
    settings = {
        "train.total": f"{epochs} epochs",
        "optimizer.warmup": "0 steps",
        "log.every": "5 steps",
        "log.progress": "none",
        "hooks.probe.target": f"{__spec__.name if __spec__ else __name__}.Probe",
        "hooks.probe.every": "20 steps",
        "log.trackers.one.target": KINDS[name],
        **{f"log.trackers.one.{key}": value for key, value in arguments.items()},
    }
    words = ["train", "--config=configs.digits", f"--workdir={run}", "--accept-schedule-change"]
    return convoy(*words, *(f"--config.{key}={value}" for key, value in settings.items()))


def convoy(*words: str) -> str:
    """Runs the command line in another process; returns its output."""
    command = [sys.executable, "-m", "engine.cli.main", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    return done.stdout


def logged_steps(run: Path, name: str = "loss") -> list[int]:
    """Returns the steps of the rows with a metric, each once."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return sorted({row["step"] for row in rows if name in row})


def read_mlflow(folder: Path, run: str) -> dict[str, Any]:
    """Returns what MLflow holds of the newest run of a name."""
    client = package("mlflow").MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name(PROJECT)
    [found] = [r for r in client.search_runs([experiment.experiment_id]) if r.info.run_name == run]
    images = [file.path for file in client.list_artifacts(found.info.run_id, "images")]
    return {
        "steps": sorted(metric.step for metric in client.get_metric_history(found.info.run_id, TAG)),
        "settings": found.data.params,
        "state": {"FINISHED": "done"}.get(found.info.status, found.info.status),
        "images": [path for path in images if "probe~picture" in path and path.endswith(".png")],
    }


def read_trackio(folder: Path, run: str) -> dict[str, Any]:
    """Returns what Trackio holds of a run."""
    trackio = package("trackio")
    [found] = [each for each in trackio.Api().runs(PROJECT) if each.name == run]
    rows = trackio.SQLiteStorage.get_logs(PROJECT, run)
    return {
        "steps": sorted(row["step"] for row in rows if TAG in row),
        "settings": found.config,
        "state": "done",
        "images": [row for row in rows if IMAGE in row],
    }


def read_wandb(folder: Path, run: str) -> dict[str, Any]:
    """Returns what the offline files of W&B hold of a run: each attempt has its own, with the same id."""
    steps, settings, exits, images, ids = [], {}, [], [], set()
    for path in sorted((folder / run / "wandb").glob("offline-run-*/*.wandb")):
        for record in wandb_records(path.read_bytes()):
            row = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            steps += [int(row["step"])] if TAG in row else []
            images += [row] if any(name.startswith(IMAGE) for name in row) else []
            ids |= {record.run.run_id} - {""}
            settings |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            exits += [record.exit.exit_code] if record.HasField("exit") else []
    assert len(ids) == 1, ids
    state = "done" if exits[-1] == 0 else str(exits)
    return {"steps": sorted(steps), "settings": settings, "state": state, "images": images}


def wandb_records(data: bytes) -> Iterator[Any]:
    """Yields the records of an offline file: those of a log of LevelDB, after 7 bytes."""
    protocol = package("wandb.proto.wandb_internal_pb2")
    at, content = 7, b""
    while at + 7 <= len(data):
        _, size, kind = struct.unpack_from("<IHB", data, at)
        if not kind or (at % BLOCK) + 7 > BLOCK:  # the end of a block is empty
            at += BLOCK - at % BLOCK
            continue
        content += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (FULL, LAST):
            record = protocol.Record()
            record.ParseFromString(content)
            content = b""
            yield record


READERS: Mapping[str, Callable[[Path, str], dict[str, Any]]] = {
    "mlflow": read_mlflow,
    "trackio": read_trackio,
    "wandb": read_wandb,
}


def check(name: str, run: Path, folder: Path, live: bool) -> None:
    """Reads a run back from a tracker and compares it with the files of the run; a run that was live has images."""
    found = READERS[name](folder, run.name)
    assert found["steps"] == logged_steps(run), (found["steps"], logged_steps(run))
    assert str(found["settings"]["optimizer.learning_rate"]) == "0.003", found["settings"]
    assert found["state"] == "done", found["state"]
    assert len(found["images"]) == (len(logged_steps(run, "probe/worst")) if live else 0), found["images"]


def main(name: str, place: str) -> None:
    """Makes all checks of one tracker."""
    folder = Path(place)
    os.environ |= {"TRACKIO_DIR": f"{folder}/trackio", "WANDB_MODE": "offline", "GIT_PYTHON_REFRESH": "quiet"}
    os.chdir(folder)
    uri = {"uri": f"sqlite:///{folder}/mlflow.db", "experiment": PROJECT} if name == "mlflow" else {"project": PROJECT}
    if name == "mlflow":  # creating the tables takes longer than these short runs, which wait 30 seconds at their end
        package("mlflow").MlflowClient(tracking_uri=uri["uri"]).search_experiments()
    live, pushed = folder / "live", folder / "pushed"
    for epochs in (2, 4):
        said = train(live, epochs, name, **uri)
        assert "were not sent" not in said, said
    check(name, live, folder, live=True)
    print(f"{name}: a resumed run is one run, with {len(logged_steps(live))} rows and its images")
    train(pushed, 2, "csv")
    to = [f"--to={name}", f"--project={PROJECT}", *([f"--uri={uri['uri']}"] if "uri" in uri else [])]
    assert "nothing is missing" not in convoy("runs", "push", str(pushed), *to)
    assert "nothing is missing" in convoy("runs", "push", str(pushed), *to)
    assert "nothing is missing" in convoy("runs", "push", str(live), *to)
    check(name, pushed, folder, live=False)
    print(f"{name}: a run that is pushed twice is there once")
    if name == "mlflow":
        begin = time.monotonic()
        said = train(folder / "unreachable", 2, name, uri=UNREACHABLE)
        assert "14 rows of metrics and 3 images were not sent" in said, said
        print(f"{name}: a run without a server ended as done in {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
