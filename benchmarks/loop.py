"""Measures what the engine's loop costs: the time of its step over that of a hand-written loop.

tools/bazel run //benchmarks:loop [-- --turns 12 --seconds 0.6]
python -m benchmarks.loop

Three models, each with one step a dispatch. Both loops run in turns in one process, on the same batches and devices. A
ratio is that of two neighbouring turns. The exit code does not depend on the target.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Iterator
from typing import Any

from benchmarks import interleaved, report, workloads
from benchmarks.report import Row


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Milliseconds a step of each turn, and the logged losses by step, of both loops."""

    engine_ms: list[float]
    bare_ms: list[float]
    engine_losses: dict[int, float]
    bare_losses: dict[int, float]


def measure(name: str, turns: int, seconds: float, steps: int | None = None, **settings: Any) -> Comparison:
    """Runs both loops over the same steps.

    Args:
        name: name of the model.
        turns: turns of each loop.
        seconds: length of a turn; `steps`, if given, takes its place.
        **settings: fields of the config, as in `workloads.config`.

    Raises:
        RuntimeError: the loops did different numbers of steps.
    """
    if steps is None:
        steps = steps_for(name, seconds)
    config = workloads.config(name, steps=interleaved.total_steps(steps, turns), **settings)
    bare = workloads.bare_loop(config)
    bare.train(steps)
    with interleaved.EngineLoop(config, steps) as engine:
        loops = {"engine": engine.turn, "bare": lambda: bare.train(steps)}
        times = interleaved.interleave(loops, turns, title=f"loop, {name}")
    if engine.step != bare.step:
        raise RuntimeError(f"the engine did {engine.step} steps, the bare loop {bare.step}")
    return Comparison(
        *([1e3 * s / steps for s in times[loop]] for loop in ("engine", "bare")),
        engine_losses=engine.losses(),
        bare_losses={step: loss for step, (loss, _) in bare.logged.items()},
    )


def steps_for(name: str, seconds: float) -> int:
    """Returns how many steps of the bare loop take so long."""
    bare = workloads.bare_loop(workloads.config(name, steps=1000))
    bare.train(10)
    begin = time.perf_counter()
    bare.train(40)
    return max(10, int(40 * seconds / (time.perf_counter() - begin)))


def row(name: str, times: Comparison) -> Row:
    """Returns the row of a model."""
    engine, bare = statistics.median(times.engine_ms), statistics.median(times.bare_ms)
    return Row(
        f"step, engine / bare loop: {workloads.TITLES[name]}",
        report.ratios(times.engine_ms, times.bare_ms),
        digits=3,
        at_most=1.05,
        note=f"engine {engine:.3f} ms, bare {bare:.3f} ms",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this benchmark."""
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=0.6, help="length of a turn")
    parser.add_argument("--steps", type=int, help="length of a turn in steps, in place of --seconds")
    parser.add_argument("--only", choices=workloads.NAMES)


def run(args: argparse.Namespace) -> Iterator[Row]:
    """Measures each model and yields its row."""
    for name in workloads.NAMES if args.only is None else (args.only,):
        yield row(name, measure(name, args.turns, args.seconds, args.steps))


if __name__ == "__main__":
    report.main(__doc__, add_arguments, run, tiny=("--only=digits", "--turns=1", "--steps=8"))
