"""Checks trackers with their real packages, and measures what they cost a step.

python -m benchmarks.trackers                                         # CSV and TensorBoard, which need no package
python -m benchmarks.trackers --environments=FOLDER --only=mlflow,wandb,trackio

Each package has an environment of its own, installed from `locks/NAME.txt` with hashes (some hundred MB; a later run
uses it again). There, `checks.py` trains, resumes and pushes a run and reads back what the tracker holds. Then a loop
with that tracker, CSV and TensorBoard, and a loop without trackers, run in turns in two processes: a small CNN with a
row for every 50 steps. CPU seconds count all threads of a process, also while the other loop runs.

Exit code: 0 if all checks pass and the programs end, 1 otherwise.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.references.environment import Environment
from benchmarks.report import Row
from benchmarks.worker import Worker

TOP = Path(__file__).parents[2]
LOCKS = Path(__file__).parent / "locks"
PACKAGES = tuple(sorted(path.stem for path in LOCKS.glob("*.txt")))
"""Trackers with a package of their own."""
BUILT_IN = ("csv", "tensorboard")
AT_MOST = 1.03


def step_time(python: Path, names: tuple[str, ...], folder: Path, turns: int, steps: int) -> Iterator[Row]:
    """Yields the seconds and the CPU seconds of a loop with trackers, over those of a loop without."""
    env = {"PYTHONPATH": str(TOP), "TRACKIO_DIR": str(folder / "trackio"), "WANDB_MODE": "offline"}
    words = [str(python), "-m", "benchmarks.trackers.loop_worker", str(steps), str(turns + 1), str(folder)]
    seconds: dict[str, list[float]] = {"on": [], "off": []}
    cpu: dict[str, list[float]] = {"on": [], "off": []}
    with Worker([*words, *names], env) as on, Worker(words, env) as off:
        for turn in range(turns + 1):  # the first one imports the packages
            report.progress(f"trackers, {', '.join(names)}: turn {turn} of {turns}")
            for name, worker in [("on", on), ("off", off)][:: 1 if turn % 2 else -1]:
                wall_s, cpu_s = worker.turn(steps)
                seconds[name].append(wall_s)
                cpu[name].append(cpu_s)
    yield from rows(names, seconds, cpu, steps)


def rows(
    names: Sequence[str], seconds: Mapping[str, list[float]], cpu: Mapping[str, list[float]], steps: int
) -> tuple[Row, Row]:
    """Returns the rows of two loops, whose first turn does not count.

    Args:
        names: the trackers.
        seconds: "on" or "off" -> seconds of each turn.
        cpu: likewise -> CPU seconds of the process so far, after each turn.
        steps: steps of a turn.
    """
    used = {name: [b - a for a, b in itertools.pairwise(values)] for name, values in cpu.items()}
    what = f"step, with / without {', '.join(names)}"
    ms = [1e3 * min(seconds[name][1:]) / steps for name in ("on", "off")]
    note = f"shortest turns {ms[0]:.4f} and {ms[1]:.4f} ms a step"
    return (
        Row(what, report.ratios(seconds["on"][1:], seconds["off"][1:]), digits=3, at_most=AT_MOST, note=note),
        Row(f"{what}: CPU seconds", report.ratios(used["on"], used["off"]), digits=3, at_most=AT_MOST),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this benchmark."""
    parser.add_argument("--only", default="", metavar="NAMES", help=f"trackers with a package: {', '.join(PACKAGES)}")
    parser.add_argument("--environments", type=Path, metavar="FOLDER", help="keep the environments here")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--steps", type=int, default=600, help="steps of a turn")


def run(args: argparse.Namespace) -> Iterator[Row]:
    """Checks and measures each tracker, and yields the rows."""
    names = [name for name in args.only.split(",") if name]
    if unknown := [name for name in names if name not in PACKAGES]:
        sys.exit(f"--only: {', '.join(unknown)} is unknown. Trackers: {', '.join(PACKAGES)}.")
    with tempfile.TemporaryDirectory(prefix="convoy-trackers-") as temporary:
        if not names:
            yield from step_time(Path(sys.executable), BUILT_IN, Path(temporary), args.turns, args.steps)
        for name in names:
            environment = Environment(name, args.environments or Path(temporary), locks=LOCKS)
            environment.create()
            folder = Path(temporary) / f"{name}-runs"
            folder.mkdir()
            command = [str(environment.python), "-m", "benchmarks.trackers.checks", name, str(folder)]
            subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(TOP)})
            yield from step_time(environment.python, (name, *BUILT_IN), folder, args.turns, args.steps)


if __name__ == "__main__":
    report.main(__doc__, add_arguments, run, tiny=("--turns=1", "--steps=8"))
