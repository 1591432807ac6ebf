"""A source of the examples of every reader with random access, and a task that shows in which order they were read.

`python -m tests.readers.every_reader FOLDER RUN WORKERS` trains on it, and kills itself after 7 steps.
"""

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from flax import nnx

import engine
from engine import Loss, Task
from engine import readers as r
from engine.data.source import ArraySource, BaseSource
from engine.metrics import Mean
from engine.readers.array_record import write_array_record
from tests import runs
from tests.readers.driving_files import write_kitti, write_nuscenes
from tests.readers.image_files import encoded, picture
from tests.readers.mcap_files import write_log
from tests.readers.table_files import FORMATS, write
from tests.readers.video_files import write_video

FIXTURES = Path(__file__).parent / "fixtures"
ROWS, STEPS, KILLED_AFTER = 8, 12, 7


def write_files(folder: Path) -> str:
    """Writes the files of all readers, without their indexes."""
    (folder / "images" / "car").mkdir(parents=True)
    for number in range(4):
        (folder / "images" / "car" / f"{number}.jpg").write_bytes(encoded(picture(20, 30, seed=number), "JPEG"))
    for kind in FORMATS:
        write(folder, kind, pa.table({"x": [[i, 2 * i] for i in range(20)]}))
    write_array_record(ArraySource({"x": np.arange(30).reshape(10, 3)}), str(folder / "a.arrayrecord"))
    write_video(folder / "a.mp4")
    write_nuscenes(folder / "nuscenes")
    write_kitti(folder / "kitti")
    write_log(folder / "a.mcap")
    for name in ("examples.tfrecord", "scenarios.tfrecord", "samples.tar", "ros2.mcap", "protobuf.mcap"):
        shutil.copy(FIXTURES / name, folder)
    return str(folder)


class EveryReader(BaseSource):
    """Examples of all readers, one after the other; `label` is a number that depends on the largest array."""

    def __init__(self, folder: str):
        sensors = ["LIDAR_TOP", "RADAR_FRONT", "CAM_FRONT"]
        self.readers = [
            *(reader(f"{folder}/a.{kind}") for kind, reader in FORMATS.items()),
            r.ArrayRecordSource(f"{folder}/a.arrayrecord"),
            r.HuggingFace(str(FIXTURES / "hugging_face")),
            r.ImageFolder(f"{folder}/images", size=(8, 8)),
            r.Video(f"{folder}/a.mp4"),
            r.NuScenes(f"{folder}/nuscenes", "v1.0-mini", sensors, sweeps=2),
            r.KittiObject(f"{folder}/kitti"),
            r.Argoverse2Sensor(str(FIXTURES / "argoverse2_layout/sensor")),
            r.Argoverse2Motion(str(FIXTURES / "argoverse2_layout/motion")),
            r.TFRecord(f"{folder}/examples.tfrecord"),
            r.TFRecord(f"{folder}/scenarios.tfrecord", r.WaymoScenario()),
            r.WebDataset(f"{folder}/samples.tar"),
            r.Mcap(f"{folder}/a.mcap", ["/imu", "/map"]),
            r.Mcap(f"{folder}/ros2.mcap", ["/detections", "/camera"]),
            r.Mcap(f"{folder}/protobuf.mcap", "/detections"),
        ]

    def __len__(self) -> int:
        return 4 * len(self.readers)

    def __getitem__(self, index: int) -> dict[str, np.int32]:
        source = self.readers[index % len(self.readers)]
        return {"label": np.int32(number(source[index // len(self.readers) % len(source)]))}


def number(example: dict) -> int:
    """Returns a number that depends on the largest array of an example."""
    arrays = [value for value in example.values() if isinstance(value, np.ndarray) and value.dtype.kind in "uif"]
    return int(abs(max(arrays, key=lambda array: array.size).astype(np.float64).sum()) % 1009)


class Order(Task):
    """A model of one weight, with a metric of the labels and their places in the batch, exact in float32."""

    def build(self, rngs):
        return nnx.Linear(1, 1, rngs=rngs)

    def loss(self, model, batch, rng):
        labels = batch["label"].astype(jnp.float32)
        places = Mean.of(labels * (1 + jnp.arange(ROWS)))
        return Loss.of((model(labels[:, None] / 1009)[:, 0] - 1) ** 2, metrics={"places": places})


class Kill:
    """A hook that kills its own process, once a save is complete."""

    def __init__(self, run: str):
        self._run = Path(run)

    def run(self, trainer, state, step):
        end = time.monotonic() + 120
        while not runs.saved_steps(self._run):
            assert time.monotonic() < end
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)


def train(folder: str, run: Path, workers: int, kill: bool = False) -> None:
    """Trains, or continues to train, for STEPS steps."""
    config = runs.config(
        task={"target": "tests.readers.every_reader.Order"},
        data={"target": "tests.readers.every_reader.EveryReader", "folder": folder, "workers": workers},
        evaluations={},
        train__total=f"{STEPS} steps",
        train__global_batch_size=ROWS,
        checkpoint__every="2 steps",
    )
    kill_hook = {"target": "tests.readers.every_reader.Kill", "every": f"{KILLED_AFTER} steps", "run": str(run)}
    engine.train(config, hooks={"kill": kill_hook} if kill else {}, workdir=run)


if __name__ == "__main__":
    train(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), kill=True)
