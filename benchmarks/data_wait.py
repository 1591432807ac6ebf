"""Measures which share of the time the engine's loop waits for data while it trains.

tools/bazel run //benchmarks:data_wait [-- --turns 8]
python -m benchmarks.data_wait

The share is the metric `data_wait` of the run: the time from the request for a block of batches until it arrives. For
comparison the note has the time of a step, and of a batch when the feed runs alone. The exit code does not depend on
the target.
"""

import argparse
import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks import interleaved, report, workloads
from benchmarks.loop import steps_for
from benchmarks.report import Row

NAMES = (*workloads.NAMES, *workloads.WITHOUT_BARE_LOOP)


class Interval(NamedTuple):
    """One row of metrics of the run: its last step, the share of waiting, and the seconds of a step."""

    step: int
    share: float
    step_s: float


class Waits(NamedTuple):
    """What one model took: intervals of the run, steps of a turn, milliseconds of a step and of a batch alone."""

    intervals: list[Interval]
    steps: int
    step_ms: list[float]
    batch_ms: list[float]


def measure(name: str, turns: int, seconds: float, steps: int | None = None, **settings: Any) -> Waits:
    """Trains in turns with a feed that nothing else uses. Arguments as in `loop.measure`."""
    if steps is None:
        steps = steps_for(workloads.MLP if name in workloads.WITHOUT_BARE_LOOP else name, seconds)
    config = workloads.config(name, steps=interleaved.total_steps(steps, turns), **settings)
    feed = workloads.train_feed(config)
    with interleaved.EngineLoop(config, steps) as engine:
        loops = {"engine": engine.turn, "feed": lambda: [feed.next(1) for _ in range(steps)]}
        times = interleaved.interleave(loops, turns, title=f"data_wait, {name}")
    intervals = [
        Interval(row["step"], row["data_wait"], row["step_time_s"])
        for row in engine.rows
        if "data_wait" in row and row["step"] > steps  # the first turn compiles
    ]
    return Waits(intervals, steps, *([1e3 * s / steps for s in times[loop]] for loop in ("engine", "feed")))


def shares(waits: Waits) -> tuple[float, ...]:
    """Returns the percentage of waiting in each turn: one interval may hold a wait for many steps or for none."""
    turns: dict[int, list[Interval]] = {}
    for interval in waits.intervals:
        turns.setdefault((interval.step - 1) // waits.steps, []).append(interval)
    return tuple(100 * _mean_share(intervals) for intervals in turns.values())


def _mean_share(intervals: list[Interval]) -> float:
    return statistics.fmean((i.share for i in intervals), (i.step_s for i in intervals))


def row(name: str, waits: Waits) -> Row:
    """Returns the row of a model."""
    step, batch = statistics.median(waits.step_ms), statistics.median(waits.batch_ms)
    return Row(
        f"time waiting for data: {workloads.TITLES[name]}",
        shares(waits),
        "%",
        at_most=1,
        note=f"{100 * _mean_share(waits.intervals):.2f} % of all turns; step {step:.3f} ms, batch alone {batch:.3f} ms",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this benchmark."""
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a turn")
    parser.add_argument("--steps", type=int, help="length of a turn in steps, in place of --seconds")
    parser.add_argument("--only", choices=NAMES)


def run(args: argparse.Namespace) -> Iterator[Row]:
    """Measures each model and yields its row."""
    for name in NAMES if args.only is None else (args.only,):
        yield row(name, measure(name, args.turns, args.seconds, args.steps))


if __name__ == "__main__":
    report.main(__doc__, add_arguments, run, tiny=("--only=digits", "--turns=1", "--steps=64"))
