"""Measures what padded, bucketed and packed reading of a long-tailed dataset cost, and how equal the ranks' costs are.

tools/bazel run //benchmarks:ragged [-- --turns 5]
python -m benchmarks.ragged

The scenes have log-normal sizes, and the largest has 20 times the median. The cost of an example is its number of
elements: the ratio is that of all elements that a batch computes, with padding, to those of its examples. The notes
have the time of a training step of a set model, per example. The exit code does not depend on the targets.
"""

import argparse
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from benchmarks import interleaved, report
from benchmarks.data_wait import Interval, Waits, shares
from benchmarks.report import Row
from convoy_zoo.models.scenes import Scenes
from engine.config import defaults, validate
from engine.config.schema import Config
from engine.data.adapt import build_source
from engine.data.ragged.report import RaggedReport
from engine.data.ragged.report import report as ragged_report

MEDIAN, LARGEST = 15, 300
RANKS, RANK_ROWS = 8, 32
FIELDS = ["agents", "step"]
LENGTHS = [10, 20, 40, 100, LARGEST]


class StoredScenes(Scenes):
    """Scenes in memory: generating one takes longer than reading it from a file."""

    def __init__(self, count: int):
        super().__init__(count, median=MEDIAN, most=LARGEST)
        self._scenes = [super(StoredScenes, self).__getitem__(index) for index in range(count)]

    def __getitem__(self, index):
        return self._scenes[index]


class Measured(NamedTuple):
    """What one way of reading took."""

    ragged: RaggedReport
    examples_per_row: float
    seconds: list[float]
    """Of each turn."""
    waits: Waits


def sections(count: int) -> dict[str, tuple[dict[str, Any], int]]:
    """Returns the way of reading -> its section `data`, and the rows of a batch of about 32 examples."""
    scenes = {"target": "benchmarks.ragged.StoredScenes", "count": count}
    bucketed = {"target": "engine.Bucketed", "source": scenes, "lengths": LENGTHS, "fields": FIELDS}
    return {
        "padded": ({**bucketed, "target": "engine.Padded", "lengths": LARGEST}, 32),
        "bucketed": (bucketed, 32),
        "packed": ({"target": "engine.Packed", "documents": scenes, "length": LARGEST, "fields": FIELDS}, 3),
    }


def config(data: dict[str, Any], rows: int, steps: int) -> Config:
    """Returns the config of a run of so many steps."""
    c = defaults()
    c.task = {"target": "convoy_zoo.models.scenes.NextStep", "width": 32, "depth": 2, "heads": 2}
    c.data = {**data, "prefetch": 8}  # the steps of the shortest scenes take 2 ms
    c.train.total = f"{steps} steps"
    c.train.global_batch_size = rows
    c.log.tensorboard = False
    c.log.every = "10 steps"
    c.checkpoint.every = None
    return validate(c)


def measure(name: str, count: int, turns: int, steps: int) -> Measured:
    """Trains in turns of so many steps on one way of reading."""
    data, rows = sections(count)[name]
    section = config(data, rows, interleaved.total_steps(steps, turns))
    source = build_source(section.data, "data")
    found = ragged_report(source, batch_size=rows, seed=0, shuffle=True, ranks=1)
    assert found is not None
    with interleaved.EngineLoop(section, steps, jax.devices()[:1]) as engine:
        seconds = interleaved.interleave({name: engine.turn}, turns, title=f"ragged, {name}")[name]
    intervals = [
        Interval(row["step"], row["data_wait"], row["step_time_s"])
        for row in engine.rows
        if "data_wait" in row and row["step"] > steps  # the first turn compiles
    ]
    return Measured(found, count / len(source), seconds, Waits(intervals, steps, [], []))


def rows_of(name: str, measured: Measured, steps: int, batch_rows: int) -> Iterator[Row]:
    """Yields the cost of a way of reading and its share of waiting."""
    examples = steps * batch_rows * measured.examples_per_row
    times = tuple(1e3 * seconds / examples for seconds in measured.seconds)
    yield Row(
        f"elements / elements without padding: {name}",
        (1 / (1 - measured.ragged.padding),),
        at_most=1.15 if name == "packed" else None,
        note=f"step of a set model, per example: {report.spread(times, 3, 'ms')}",
    )
    yield Row(f"time waiting for data: {name} scenes", shares(measured.waits), "%", at_most=1)


def imbalance(count: int, target: str) -> float:
    """Returns the 95th percentile of the imbalance of 8 ranks with 32 examples each, in percent."""
    padded = {"target": "engine.Padded", "source": {"target": "convoy_zoo.models.scenes.Scenes", "count": count}}
    padded |= {"lengths": LARGEST, "fields": FIELDS}
    data = {"target": target, "source": padded, "ranks": RANKS} if target == "engine.Balanced" else padded
    rows = RANKS * RANK_ROWS
    source = build_source(config(data, rows, 1).data, "data")
    found = ragged_report(source, batch_size=rows, seed=0, shuffle=True, ranks=RANKS)
    assert found is not None and found.late_imbalance is not None
    return 100 * found.late_imbalance


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this benchmark."""
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60, help="length of a turn")
    parser.add_argument("--count", type=int, default=2000, help="scenes")
    parser.add_argument("--only", choices=("padded", "bucketed", "packed"))


def run(args: argparse.Namespace) -> Iterator[Row]:
    """Measures the balance and each way of reading, and yields their rows."""
    yield Row(
        f"imbalance of {RANKS} ranks of {RANK_ROWS} examples, 95th percentile",
        (imbalance(10 * args.count, "engine.Balanced"),),
        "%",
        at_most=3,
        note=f"without Balanced {imbalance(10 * args.count, 'engine.Padded'):.1f} %",
    )
    for name, (_, rows) in sections(args.count).items():
        if args.only in (None, name):
            yield from rows_of(name, measure(name, args.count, args.turns, args.steps), args.steps, rows)


if __name__ == "__main__":
    report.main(__doc__, add_arguments, run, tiny=("--turns=1", "--steps=10", "--count=60", "--only=packed"))
