"""Measures what N processes cost the process that hosts the key-value store, without devices, and how it grows with N.

tools/bazel run //benchmarks:coordination [-- --processes 50,400,1000]
python -m benchmarks.coordination

Real processes join, start, agree on a step, save and restore (`simulated_processes.py`). All of them share the cores of
this machine, so the seconds are processor time rather than waits for a network. The numbers of requests and bytes do
not depend on the machine. The *exponent* is the slope of a line through their logarithms: 1 is linear growth.
docs/scale.md explains the rows.
"""

import argparse
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.report import Row
from benchmarks.simulated_processes import IDLE_S, Result, dilation, simulate

WHAT = {
    "join": "join",
    "start": "start",
    "agree": "agreement on a step",
    "save": "save",
    "restore": "restore",
    "leave": "end",
}
LINEAR = 1.1
"""Largest exponent that counts as linear."""


def exponent(values: Mapping[int, float]) -> float:
    """Returns the slope of the logarithm of a value over the logarithm of its number of processes."""
    x, y = [math.log(n) for n in values], [math.log(value) for value in values.values()]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    over = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return over / sum((a - mean_x) ** 2 for a in x)


def rows(results: Mapping[int, Result], idle_s: float = IDLE_S) -> Iterator[Row]:
    """Yields the rows of simulations, by their number of processes, each of which was idle for `idle_s` seconds."""
    for count, result in results.items():
        for phase, what in WHAT.items():
            everyone, cpu_s = result.all(phase), result.cpu_s[phase]
            (requests, size), (polls, _) = everyone.total(polls=False), everyone.total(polls=True)
            note = f"process 0 answers {requests:,} requests with {size / 1024:,.0f} KiB, and {polls:,} polls, in "
            note += f"{cpu_s[0]:.2f} s of processor time; all processes use {sum(cpu_s):.1f} s"
            yield Row(f"{count} processes, {what}", (result.seconds[phase],), "s", note=note)
        polls, size = result.all("idle").total(polls=True)
        cpu = result.cpu_s["idle"][0] / idle_s
        note = f"{size / idle_s / 1024:,.0f} KiB/s, {cpu:.0%} of a core; a process has {result.memory_mib:.0f} MiB"
        if (slower := dilation(count)) > 1:  # so many polls in `slower` times the time
            note += f"; measured {slower:g} times slower"
        yield Row(f"{count} processes, polls at process 0", (polls / idle_s,), "requests/s", digits=0, note=note)
    if len(results) > 1:
        yield from _growth(results)


def _growth(results: Mapping[int, Result]) -> Iterator[Row]:
    phases = {phase: what for phase, what in WHAT.items() if phase != "join"} | {"idle": "polls"}
    for phase, what in phases.items():
        totals = {n: result.all(phase).total(polls=phase == "idle") for n, result in results.items()}
        for position, unit in enumerate(("requests", "bytes")):
            growth = exponent({n: total[position] for n, total in totals.items()})
            yield Row(f"{what}, {unit} at process 0: exponent of the growth", (growth,), at_most=LINEAR)
    for phase, what in phases.items():
        times = {n: _per_request(result, phase) for n, result in results.items()}
        if not all(times.values()):  # shorter than a tick of the clock
            continue
        growth, each = exponent(times), ", ".join(f"{1e3 * time:.2f} ms" for time in times.values())
        yield Row(f"{what}, processor time of process 0 per request: exponent of the growth", (growth,), note=each)


def _per_request(result: Result, phase: str) -> float:
    """Returns the seconds of processor time of process 0 for each request that it answers, polls included."""
    everyone = result.all(phase)
    return result.cpu_s[phase][0] / (everyone.total(polls=False)[0] + everyone.total(polls=True)[0])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this benchmark."""
    parser.add_argument(
        "--processes", type=_counts, default=[50, 100, 200, 400, 1000], metavar="N,N", help="simulations"
    )
    parser.add_argument("--idle", type=float, default=IDLE_S, help="seconds in which the processes only poll")


def _counts(text: str) -> Sequence[int]:
    return [int(word) for word in text.split(",")]


def run(args: argparse.Namespace) -> Iterator[Row]:
    """Simulates each number of processes and yields the rows."""
    memory = Path("/dev/shm")  # the files of the run are not what is measured
    results = {}
    for count in args.processes:
        report.progress(f"coordination: {count} processes")
        with tempfile.TemporaryDirectory(prefix="coordination_", dir=memory if memory.is_dir() else None) as folder:
            results[count] = simulate(count, Path(folder), args.idle)
    yield from rows(results, args.idle)


if __name__ == "__main__":
    report.main(__doc__, add_arguments, run, tiny=("--processes=2,4", "--idle=0.5"))
