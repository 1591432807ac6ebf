"""Measures the time from the start of a process to its first step, with an empty and with a filled compile cache.

tools/bazel run //benchmarks:first_step [-- --rounds 3]
python -m benchmarks.first_step

Real processes in turns: `convoy train --config=configs.digits`, and the same model in a hand-written script
(`bare_start.py`). *Cold* starts have an empty cache folder, *warm* starts the folder that the cold start has filled.
The clock starts before the process does and stops when the process has the result of step 1. The exit code does not
depend on the target.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks import report
from benchmarks.first_step_hook import REPORT_FILE
from benchmarks.report import Row

KINDS = {"cold": "empty", "warm": "filled"}
"""Kind of start -> its compile cache."""

Command = Callable[[Path], list[str]]
"""Folder for a run directory -> command line."""


def engine(folder: Path) -> list[str]:
    """Returns the command that starts the engine."""
    hook = ["--config.hooks.first.target=benchmarks.first_step_hook.FirstStep", "--config.hooks.first.every=1 step"]
    return [sys.executable, "-m", "engine.cli.main", "train", "--config=configs.digits", f"--workdir={folder}", *hook]


def bare(folder: Path) -> list[str]:
    """Returns the command that starts the hand-written script."""
    return [sys.executable, "-m", "benchmarks.bare_start"]


COMMANDS: Mapping[str, Command] = {"engine": engine, "bare": bare}


def seconds(command: list[str], cache: Path, report_file: Path) -> float:
    """Runs a process until its first step and returns how long that took.

    Raises:
        RuntimeError: the process failed.
    """
    env = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache), REPORT_FILE: str(report_file)}
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    report_file.unlink(missing_ok=True)
    begin = time.monotonic()  # the processes of a machine share it
    done = subprocess.run(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode or not report_file.exists():
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise RuntimeError(f"{' '.join(command)}: ended with {done.returncode} before its first step: {last}")
    return float(report_file.read_text()) - begin


def measure(rounds: int, commands: Mapping[str, Command] = COMMANDS) -> dict[str, list[float]]:
    """Returns the seconds of each round by "engine cold", "bare cold", "engine warm", "bare warm"."""
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="convoy-first-step-") as path:
        for i in range(rounds):
            report.progress(f"first_step: round {i + 1} of {rounds}")
            for kind in KINDS:
                for name in list(commands) if i % 2 == 0 else reversed(list(commands)):
                    folder = Path(path) / f"{name}-{i}-{kind}"
                    cache = Path(path) / f"{name}-{i}-cache"
                    times.setdefault(f"{name} {kind}", []).append(
                        seconds(commands[name](folder), cache, Path(path) / "first-step")
                    )
    return times


def rows(times: Mapping[str, list[float]]) -> Iterator[Row]:
    """Yields the rows of what `measure` returned."""
    for kind, state in KINDS.items():
        bare_s = statistics.median(times[f"bare {kind}"])
        yield Row(
            f"digits, process start to first step, compile cache {state}",
            tuple(times[f"engine {kind}"]),
            "s",
            at_most=4 if kind == "warm" else None,
            note=f"bare script {bare_s:.2f} s",
        )
    yield Row(
        "the same with a filled cache, engine / bare script",
        report.ratios(times["engine warm"], times["bare warm"]),
        at_most=1.4,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this benchmark."""
    parser.add_argument("--rounds", type=int, default=3)


def run(args: argparse.Namespace) -> Iterator[Row]:
    """Measures and yields rows."""
    yield from rows(measure(args.rounds))


if __name__ == "__main__":
    report.main(__doc__, add_arguments, run, tiny=("--rounds=1",))
