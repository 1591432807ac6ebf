"""Compares a search of digits that ends bad trials early, and is killed twice, with the full grid.

tools/bazel run //benchmarks:sweep [-- --kills 2 --seed 0 --parallel 2]
python -m benchmarks.sweep

One sweep trains each point of a grid of learning rates and widths to the end. The other has as many trials in the same
ranges and prunes by successive halving; SIGKILL hits the process group of its driver at random moments, and the same
command continues it. A *problem* is a trial that is missing, was searched twice, failed or ran again after its end, and
a run whose steps are not counted once. Steps that were repeated after a kill count as steps.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.report import Row
from engine.run import goodput, status
from engine.sweeps.records import COMPLETE, PRUNED, SweepRecord, TrialRecord, read_sweep
from engine.sweeps.space import Space

METRIC = "heldout/accuracy"
TINY = ("--steps=20", "--every=10", "--rates=2", "--widths=16", "--kills=1")
_POLL_S = 0.5
_LATE_S = 4.0
"""Longest time between the end of a trial and the kill after it: about the time that a trial needs to start."""
_TIMEOUT_S = 3600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the benchmark."""
    parser.add_argument("--steps", type=int, default=300, metavar="N", help="of each trial (%(default)s)")
    parser.add_argument("--every", type=int, default=20, metavar="N", help="steps between evaluations (%(default)s)")
    parser.add_argument("--rates", type=int, default=6, metavar="N", help="learning rates of the grid (%(default)s)")
    parser.add_argument("--widths", default="16,32,64,128", help="widths of the grid (%(default)s)")
    parser.add_argument("--sampler", default="tpe", help="of the search with pruning (%(default)s)")
    parser.add_argument("--kills", type=int, default=2, metavar="N", help="of the search with pruning (%(default)s)")
    parser.add_argument("--parallel", type=int, default=2, metavar="N", help="trials at a time (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (%(default)s)")


def run(args: argparse.Namespace) -> Iterator[Row]:
    """Runs both searches; yields what they cost and found.

    Raises:
        RuntimeError: a search has failed.
    """
    space = {
        "optimizer.learning_rate": f"log(1e-4, 1e-1, points={args.rates})",
        "task.width": f"choice({args.widths})",
    }
    points = len(Space.parse(None, space).grid())
    with tempfile.TemporaryDirectory(prefix="convoy-sweep-") as folder:
        full, halved = Path(folder) / "full", Path(folder) / "halved"
        report.progress(f"{points} points to the end")
        search(_words(args, space, full, "--sampler=grid"), full)
        report.progress(f"{points} trials with halving and {args.kills} kills")
        more = (f"--sampler={args.sampler}", f"--trials={points}", "--prune=halving")
        ended, kills = killed_search(_words(args, space, halved, *more), halved, args)
        sweeps = {path: read_sweep(path) for path in (full, halved)}
        found = problems(sweeps[halved], ended)
        for problem in found:
            print(f"problem: {problem}", flush=True)
        steps = {path: sum(_trained(path, trial) for trial in sweep.trials) for path, sweep in sweeps.items()}
        best = {path: _best(sweep) for path, sweep in sweeps.items()}
    yield Row("problems", (float(len(found)),), digits=0, at_most=0, note="; ".join(kills))
    note = f"{steps[halved]:,} of {steps[full]:,} steps"
    yield Row("steps, share of the full grid", (steps[halved] / steps[full],), at_most=0.5, note=note)
    note = f"{best[halved]:.2%} and {best[full]:.2%}"
    yield Row("best below the grid's best", (100 * (best[full] - best[halved]),), "points", at_most=1, note=note)


def search(words: Sequence[str], folder: Path) -> None:
    """Runs a search to its end. Raises RuntimeError if it fails."""
    process = _start(words, folder)
    if code := process.wait(_TIMEOUT_S):
        raise RuntimeError(f"exit code {code}: {_log(folder).read_text()[-2000:]}")


def killed_search(
    words: Sequence[str], folder: Path, args: argparse.Namespace
) -> tuple[dict[int, list[int]], list[str]]:
    """Runs a search to its end, and kills it some times before.

    Returns:
        Number of each trial that had ended at a kill -> attempts of its runs; and a text for each kill.
    """
    draw = random.Random(args.seed)
    ended: dict[int, list[int]] = {}
    texts = []
    for number in range(args.kills):
        process = _start(words, folder)
        share = (number + draw.random()) / args.kills
        if not _wait_for(folder, share, process):
            break
        time.sleep(draw.random() * _LATE_S)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        sweep = read_sweep(folder)
        finished, running = sweep.of_state(COMPLETE, PRUNED), len(sweep.trials)
        running -= len(finished)
        ended |= {trial.number: attempts(folder, trial) for trial in finished if trial.number not in ended}
        texts.append(f"killed after {len(finished)} trials, {running} were running")
        report.progress(texts[-1])
    search(words, folder)
    return ended, texts


def problems(sweep: SweepRecord, ended: Mapping[int, Sequence[int]]) -> list[str]:
    """Returns what was lost or repeated in a sweep that was killed.

    Args:
        sweep: the sweep after its end.
        ended: number of each trial that had ended before a kill -> attempts of its runs.
    """
    searched, planned = [dict(trial.values) for trial in sweep.trials], sweep.definition.trials
    found = [] if len(searched) == planned else [f"{len(searched)} trials instead of {planned}"]
    found += [f"{values} was searched twice" for place, values in enumerate(searched) if values in searched[:place]]
    for trial in sweep.trials:
        if trial.state not in (COMPLETE, PRUNED):
            found.append(f"trial {trial.number} is {trial.kind or trial.state}: {trial.problem}")
            continue
        now = attempts(sweep.path, trial)
        if now != list(ended.get(trial.number, now)):
            found.append(f"trial {trial.number} ran again after its end")
        for path in trial.runs:
            step, useful = status.read(sweep.path / path / "status.json").step, _steps(sweep.path / path)[0]
            if step != useful:
                found.append(f"trial {trial.number}: its run ended at step {step}, but {useful} are counted")
    return found


def attempts(folder: Path, trial: TrialRecord) -> list[int]:
    """Returns how often each run of a trial has started."""
    return [status.read(folder / path / "status.json").attempt for path in trial.runs]


def _trained(folder: Path, trial: TrialRecord) -> int:
    return sum(sum(_steps(folder / path)) for path in trial.runs)


def _steps(run: Path) -> tuple[int, int]:
    """Returns the steps of a run, and those that were repeated after a kill."""
    sums = goodput.sums(goodput.read(run / "goodput.jsonl"))
    return sum(kinds["step"].steps for kinds in sums.values()), sum(kinds["lost"].steps for kinds in sums.values())


def _best(sweep: SweepRecord) -> float:
    if sweep.best is None or sweep.best.value is None:
        raise RuntimeError(f"{sweep.path}: no trial is complete")
    return sweep.best.value


def _words(args: argparse.Namespace, space: Mapping[str, str], folder: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "engine.cli.main", "sweep", "run", "--config=convoy_zoo.configs.digits"),
        *(f"--space.{name}={domain}" for name, domain in space.items()),
        *(f"--metric={METRIC}", f"--parallel={args.parallel}", f"--workdir={folder}"),
        *(f"--config.train.total={args.steps} steps", f"--config.evaluations.heldout.every={args.every} steps"),
        *("--config.checkpoint.every=20 steps", *more),
    ]


def _start(words: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    with open(_log(folder), "a") as log:
        return subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)


def _log(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.txt")


def _wait_for(folder: Path, share: float, process: subprocess.Popen[bytes]) -> bool:
    """Waits until a share of the trials has ended; returns False if the search has ended before."""
    end = time.monotonic() + _TIMEOUT_S
    while process.poll() is None:
        if time.monotonic() > end:
            raise TimeoutError(f"{folder}: no progress in {_TIMEOUT_S:g} s")
        if (folder / "sweep.json").exists():
            sweep = read_sweep(folder)
            if len(sweep.of_state(COMPLETE, PRUNED)) >= share * sweep.definition.trials:
                return True
        time.sleep(_POLL_S)
    return False


if __name__ == "__main__":
    report.main(__doc__, add_arguments, run, tiny=TINY)
