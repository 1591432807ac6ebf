"""Measures what slow storage costs the loop: a step with 2 s for each write of a checkpoint, over one on a fast disk.

tools/bazel run //benchmarks:slow_storage [-- --delay 2 --steps 20000 --rounds 1]
python -m benchmarks.slow_storage

Each round trains configs.digits twice, with a save due every second. The disk (`disk.py`, a library in front of libc)
delays every call that writes a checkpoint until the last step is done. Needs a C compiler.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks import report
from benchmarks.disk import Disk
from benchmarks.report import Row

FIRST = 1000
"""Steps that are left out: the program is loaded, and the first save copies the state."""


class Training(NamedTuple):
    """Seconds of a step, and the saves that were begun and skipped."""

    step_s: float
    saves: int
    skipped: int


def times(run: Path) -> dict[int, float]:
    """Returns the unix time of each row of metrics by step, from FIRST on."""
    file = run / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {row["step"]: row["time"] for row in lines if "loss" in row and row["step"] >= FIRST}


def train(folder: Path, steps: int, delay: float) -> Training:
    """Trains once, with `delay` seconds for each call that writes a checkpoint."""
    run = folder / "run"
    disk = Disk(folder, run / "checkpoints")
    command = [sys.executable, "-m", "engine.cli.main", "train", "--config=configs.digits", f"--workdir={run}"]
    settings = {"train.total": f"{steps} steps", "checkpoint.every": "1 second", "log.progress": "none"}
    settings |= {"log.every": "100 steps", "evaluations.heldout.every": "None", "checkpoint.best": "None"}
    command += [f"--config.{name}={value}" for name, value in settings.items()]
    with subprocess.Popen(command, env=os.environ | disk.environment, stderr=subprocess.DEVNULL) as process:
        for wanted, rules in ((FIRST, [f"* write {delay}"] if delay else []), (steps, [])):
            while max(times(run), default=0) < wanted and process.poll() is None:
                time.sleep(0.1)
            disk.set_rules(*rules)
    if process.returncode:
        raise RuntimeError(f"the run ended with {process.returncode}: {(run / 'log.txt').read_text()}")
    rows, log = times(run), (run / "log.txt").read_text()
    return Training(
        (rows[steps] - rows[FIRST]) / (steps - FIRST),
        log.count("saving checkpoint of step"),
        log.count("is not saved, since step"),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this benchmark."""
    parser.add_argument("--delay", type=float, default=2.0, help="seconds of each call that writes")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=1)


def run(args: argparse.Namespace) -> Iterator[Row]:
    """Measures and yields rows."""
    trainings: dict[float, list[Training]] = {0.0: [], args.delay: []}
    for i in range(args.rounds):
        for delay, results in trainings.items():
            report.progress(f"slow_storage: round {i + 1} of {args.rounds}, {delay:g} s a write")
            with tempfile.TemporaryDirectory(prefix="slow_storage_") as folder:
                results.append(train(Path(folder), args.steps, delay))
    for delay, results in trainings.items():
        saves, skipped = (sum(counts) for counts in zip(*((t.saves, t.skipped) for t in results), strict=True))
        note = f"{saves} saves, {skipped} skipped"
        yield Row(f"step with {delay:g} s a write", tuple(1e3 * t.step_s for t in results), "ms", 3, note=note)
    fast, slow = ([t.step_s for t in results] for results in trainings.values())
    yield Row("step, slow / fast storage", report.ratios(slow, fast), digits=3)


if __name__ == "__main__":
    report.main(__doc__, add_arguments, run, tiny=("--steps=1500", "--delay=0.05"))
