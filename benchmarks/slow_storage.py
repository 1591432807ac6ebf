"""What slow storage costs the loop: time of a step with 2 s for each write of a checkpoint, over that on a quick disk.

python -m benchmarks.slow_storage [--delay 2] [--steps 20000] [--rounds 1]

Each round trains configs.digits twice, in turn, with a save due every second by the clock; of a save, every call that
writes is delayed (`disk.py`: a library before libc), until the last step is done. Prints milliseconds of a step by the
loop's own clock, their ratio, and how many saves were made and skipped. Needs a C compiler. A slow ratio fails nothing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.disk import Disk

FIRST = 1000  # steps that are left out: the program is loaded, the first save copies


def times(run: Path) -> dict[int, float]:
    """step -> when its row was made, unix seconds, from FIRST on."""
    file = run / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {row["step"]: row["time"] for row in lines if "loss" in row and row["step"] >= FIRST}


def train(folder: Path, steps: int, delay: float) -> tuple[float, int, int]:
    """Trains once; returns (seconds of a step, saves begun, saves skipped)."""
    run = folder / "run"
    disk = Disk(folder, run / "checkpoints")
    command = [sys.executable, "-m", "engine.main", "train", "--config=configs.digits", f"--workdir={run}"]
    settings = {"train.total": f"{steps} steps", "checkpoint.every": "1 second", "log.progress": "none"}
    settings |= {"log.every": "100 steps", "evaluations.heldout.every": "None", "checkpoint.best": "None"}
    command += [f"--config.{name}={value}" for name, value in settings.items()]
    with subprocess.Popen(command, env=os.environ | disk.environment, stderr=subprocess.DEVNULL) as process:
        for wanted, lines in ((FIRST, [f"* write {delay}"] if delay else []), (steps, [])):
            while max(times(run), default=0) < wanted and process.poll() is None:
                time.sleep(0.1)
            disk.does(*lines)
    if process.returncode:
        raise RuntimeError(f"the run ended with {process.returncode}: {(run / 'log.txt').read_text()}")
    rows, log = times(run), (run / "log.txt").read_text()
    return (
        (rows[steps] - rows[FIRST]) / (steps - FIRST),
        log.count("saving checkpoint of step"),
        log.count("is not saved, since step"),
    )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay", type=float, default=2.0, help="seconds of each call that writes")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    ratios = []
    for _ in range(arguments.rounds):
        both = []
        for delay in (0.0, arguments.delay):
            with tempfile.TemporaryDirectory(prefix="slow_storage_") as folder:
                seconds, saves, skipped = train(Path(folder), arguments.steps, delay)
            both.append(seconds)
            print(f"{delay:g} s a write: {1e3 * seconds:.3f} ms a step, {saves} saves, {skipped} skipped", flush=True)
        ratios.append(both[1] / both[0])
    print(f"time of a step, slow over quick: {statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})")


if __name__ == "__main__":
    main()
