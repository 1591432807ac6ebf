"""Measures `convoy compare` of two runs with average precision over many slices, from the files of their examples on.

tools/bazel run //benchmarks:compare [-- --examples 10000 --slices 200]
python -m benchmarks.compare

Both runs detect objects of three classes, with 20 predictions and up to 10 labels in an example, at the four distances
of nuScenes. A slice has 1, 5 or 10 % of the examples. The second run is a little better, so that some slices need more
resamples. The exit code does not depend on the target.
"""

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.report import Row
from engine.base import json_text
from engine.driving.detection import AveragePrecision
from engine.experiments.compare import RESAMPLES, Options, compare
from engine.experiments.comparison import Comparison
from engine.metrics import Mean
from engine.metrics.example_file import path_of, to_parquet
from engine.metrics.metric import Metric
from engine.metrics.slices import Examples
from engine.run import status

CLASSES, PREDICTIONS, LABELS = ("car", "pedestrian", "bicycle"), 20, 10


def detections(examples: int, noise: float, seed: int) -> Metric:
    """Returns detections whose labels are the same for each noise and seed."""
    random = np.random.default_rng(0)
    boxes = random.uniform(-50, 50, (examples, LABELS, 2)).astype(np.float32)
    labels = np.where(random.random((examples, LABELS)) < 0.7, random.integers(0, 3, (examples, LABELS)), -1)
    random = np.random.default_rng(seed)
    true, shape = np.arange(PREDICTIONS) % LABELS, (examples, PREDICTIONS)
    predicted = boxes[:, true] + noise * random.normal(size=(*shape, 2)) * random.choice([0.5, 1, 3], (*shape, 1))
    scores = random.random(shape) / (1 + np.linalg.norm(predicted - boxes[:, true], axis=-1))
    guesses = np.where(random.random(shape) < 0.9, labels[:, true], random.integers(0, 3, shape))
    fields: dict[str, Any] = {
        "predicted": predicted.astype(np.float32), "scores": scores.astype(np.float32),
        "guesses": guesses.astype(np.int32), "boxes": boxes, "labels": labels.astype(np.int32),
        "ignored": np.zeros(labels.shape, bool), "areas": np.full(labels.shape, np.nan, np.float32),
    }  # fmt: skip
    return AveragePrecision(
        **fields, classes=CLASSES, match="distance", thresholds=(0.5, 1.0, 2.0, 4.0), area="nuscenes"
    )


def errors(examples: int, noise: float, seed: int) -> Metric:
    """Returns an error of each example."""
    values: Any = np.random.default_rng(0).exponential(1.0, examples)
    values = (values + noise * np.random.default_rng(seed).normal(size=examples)).astype(np.float32)
    return Mean(values, np.ones_like(values))


def write(folder: Path, metric: Metric, examples: int, slices: int) -> Path:
    """Writes a run directory with the metric of each example, and returns it."""
    random = np.random.default_rng(1)
    masks = {f"slice {n}": random.random(examples) < (0.01, 0.05, 0.1)[n % 3] for n in range(slices)}
    file = folder / path_of("heldout", 1)
    file.parent.mkdir(parents=True)
    file.write_bytes(to_parquet(Examples(np.arange(examples), masks, {"metric": metric})))
    (folder / "config.txt").write_text("train.seed: 0\n")
    (folder / "data.json").write_text(json_text.dumps({"evaluations.heldout.data": {"content": "x"}}))
    status.write(folder / "status.json", status.Status(state="done", metrics={"heldout/metric": 0.0}))
    return folder


def measure(make: Any, args: argparse.Namespace) -> tuple[float, float, Comparison]:
    """Returns the seconds and the processor seconds of a comparison, and what it has found."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            write(Path(folder) / name, make(args.examples, noise, seed), args.examples, args.slices)
            for name, noise, seed in (("a", 1.0, 1), ("b", 0.97, 2))
        ]
        began, used = time.perf_counter(), time.process_time()
        found = compare(runs, Options(resamples=args.resamples))
        return time.perf_counter() - began, time.process_time() - used, found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this benchmark."""
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help="resamples of each part at first")


def run(args: argparse.Namespace) -> Iterator[Row]:
    """Compares two runs by average precision and by a mean, and yields their times."""
    for what, make, most in (("average precision", detections, 60), ("a mean", errors, None)):
        seconds, used, found = measure(make, args)
        numbers = Counter(result.resamples for result in found.results)
        resamples = ", ".join(f"{numbers[count]:,} of {count:,}" for count in sorted(numbers))
        yield Row(
            f"convoy compare: {what}, {args.examples:,} examples, {args.slices} slices",
            (seconds,),
            "s",
            1,
            at_most=most,
            note=f"{used:.1f} s of {os.cpu_count()} cores; numbers by resamples: {resamples}",
        )


if __name__ == "__main__":
    report.main(__doc__, add_arguments, run, tiny=("--examples", "300", "--slices", "3", "--resamples", "100"))
