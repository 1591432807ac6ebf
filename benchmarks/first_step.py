"""From the start of a process to its first step, with an empty and with a filled compile cache.

tools/bazel run //benchmarks:first_step [-- --rounds 3]
python -m benchmarks.first_step

Real processes, in turns: `convoy train --config=configs.digits`, and the same model in a script by hand
(`bare_start.py`). *Cold*: the cache is an empty folder. *Warm*: the folder that the cold start has filled. The clock
runs from before the process is made until it has waited for the result of step 1. Prints seconds, median and range,
and the ratio engine over bare. Fails on nothing.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MARK = "CONVOY_BENCHMARK_MARK"  # names the file that says when the first step was done


class Mark:
    """A hook: notes the time of the first step, and ends the process."""

    def run(self, trainer: Any, state: Any, step: int) -> None:
        mark()


def mark() -> None:
    """Notes the time; the process has done its part."""
    Path(os.environ[MARK]).write_text(repr(time.time()))
    os._exit(0)


def engine(folder: Path) -> list[str]:
    """The command of the engine's start."""
    hook = ["--config.hooks.mark.target=benchmarks.first_step.Mark", "--config.hooks.mark.every=1 step"]
    return [sys.executable, "-m", "engine.main", "train", "--config=configs.digits", f"--workdir={folder}", *hook]


def bare(folder: Path) -> list[str]:
    """The command of the start by hand."""
    return [sys.executable, "-m", "benchmarks.bare_start"]


def seconds(command: list[str], cache: Path, mark_file: Path) -> float:
    """Runs a process until its first step."""
    env = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache), MARK: str(mark_file)}
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    begin = time.time()
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return float(mark_file.read_text()) - begin


def measure(rounds: int) -> dict[str, list[float]]:
    """Returns seconds of each round by "engine cold", "bare cold", "engine warm", "bare warm"."""
    commands: Mapping[str, Callable[[Path], list[str]]] = {"engine": engine, "bare": bare}
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="convoy-first-step-") as path:
        for i in range(rounds):
            for kind in ("cold", "warm"):
                for name in commands if i % 2 == 0 else reversed(commands):
                    folder = Path(path) / f"{name}-{i}-{kind}"
                    took = seconds(commands[name](folder), Path(path) / f"{name}-{i}-cache", Path(path) / "mark")
                    times.setdefault(f"{name} {kind}", []).append(took)
    return times


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    # Imported here: the timed processes import this file and must not load the engine.
    from benchmarks import interleaved

    print(interleaved.machine())
    times = measure(args.rounds)
    for kind in ("cold", "warm"):
        ours, theirs = times[f"engine {kind}"], times[f"bare {kind}"]
        ratio = interleaved.spread(interleaved.ratios(ours, theirs))
        print(
            f"{kind}: engine {interleaved.spread(ours)} s  bare {interleaved.spread(theirs)} s  engine / bare {ratio}"
        )
    print("target: the second start of digits takes under 4 s to its first step")


if __name__ == "__main__":
    main()
