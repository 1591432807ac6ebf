"""Kills a run again and again, and compares its outcome with that of an unbroken run.

tools/bazel run //benchmarks:kill_storm [-- --kills 100 --seed 0 --processes 2]
python -m benchmarks.kill_storm
python -m benchmarks.kill_storm --variant streams --processes 4,2,3

`convoy supervise` trains the digits, or a variant of `storm_workloads.py`. SIGKILL hits one process or all while they
start, restore, train, save or exit. Each kill is announced first, as `docs/restarts.md` describes. With several numbers
of processes, the run continues with each of them in turn, up to its share of the steps. The exit code is 0 if the run
is done, has each step once, and equals an unbroken run with the same numbers of processes bit for bit in losses, final
state and examples. Its examples then also equal those of one process, and its losses up to a tolerance.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report, storm_workloads
from benchmarks.outcome import Outcome, outcome
from engine.base.duration import Duration
from engine.checkpoint.store import SAVING
from engine.config.schema import Hook
from engine.config.text import to_text
from engine.launch.supervise import KILLS
from engine.observe.goodput_table import goodput_text
from engine.run import goodput
from engine.run.directory import RunDirectory

STEPS_PER_KILL = 30
"""Steps of the whole run for each kill: an attempt does hardly more before it is killed."""
PAUSE_S = 0.02
"""Pause after each step, so that kills happen during training and not only between two starts."""
SAVE_EVERY = 20
PHASES = ("start-up", "restore", "step", "save")
"""What a run does when it is killed, as its files show. The last kills hit a run that exits."""
TOLERANCE = 1e-4
"""Largest relative difference of a loss on other numbers of devices, which add in another order."""
_POLL_S = 0.004
_TIMEOUT_S = 300.0
"""Longest wait for the next event."""


class Pause:
    """A hook that waits after each step."""

    def run(self, trainer: Any, state: Any, step: int) -> None:
        """Waits."""
        time.sleep(PAUSE_S)


class Storm:
    """One supervised run and its kills. A context manager: its exit ends the supervisor.

    Args:
        config: argument that names the config.
        run: directory of the run.
        processes: processes of the run.
        total: its steps.
        random: chooses the moments of kills and the processes that they hit.
    """

    def __init__(self, config: str, run: Path, processes: int, total: int, random: random.Random):
        self._config, self._run, self._total, self._random = config, run, total, random
        self._processes = processes
        self._kills = run.with_name("kills")
        self._start_s = 3.0  # time from start to first step of the last attempt that did a step
        self.phases: collections.Counter[str] = collections.Counter()
        """Kills by phase."""

    def __enter__(self) -> "Storm":
        self._log = open(self._run.with_name("output.txt"), "a")
        options = (f"--processes={self._processes}", "--devices-per-process=1")
        words = command("supervise", *options, "--", "train", self._config, f"--workdir={self._run}")
        self._supervisor = start(words, {**os.environ, KILLS: str(self._kills)}, self._log.fileno())
        return self

    def __exit__(self, *exception: object) -> None:
        if self._supervisor.poll() is None:
            self._supervisor.kill()
        self._supervisor.wait()
        self._log.close()

    def kill_repeatedly(self, kills: int) -> int:
        """Kills so often, the last times while the run exits, and returns the exit code of the supervisor."""
        while self.phases.total() < kills and (pids := self._next_attempt()):
            exiting = self.phases.total() >= kills - kills_at_exit(kills)
            phase = "exit" if exiting else self._random.choice(PHASES)
            if self._wait_for_phase(phase, pids):
                self._kill(phase, pids)
            self._wait_until(lambda pids=pids: not any(_is_alive(pid) for pid in pids))
        return self._supervisor.wait()

    def _next_attempt(self) -> list[int]:
        """Waits for the next attempt and returns its processes, or nothing when the run is over."""
        found: list[int] = []

        def has_started() -> bool:
            found[:] = _children(self._supervisor.pid)
            return len(found) == self._processes

        self._wait_until(has_started)
        return found if self._supervisor.poll() is None else []

    def _wait_for_phase(self, phase: str, pids: list[int]) -> bool:
        """Waits for a random moment in a phase; returns False if the attempt has ended before."""
        began, first = time.monotonic(), self._step()
        chance = self._random.random()

        def is_reached() -> bool:
            age = time.monotonic() - began
            match phase:
                case "start-up":
                    return age > chance * self._start_s
                case "restore":
                    return self._is_restoring(pids)
                case "step":
                    if self._step() == first:
                        self._start_s = age
                    return self._step() > first + int(chance * STEPS_PER_KILL)
                case "save":
                    return any(self._run.glob(f"checkpoints/*{SAVING}")) and self._is_training(pids)
                case _:
                    return self._is_saved() and self._is_training(pids)

        self._wait_until(lambda: is_reached() or not any(_is_alive(pid) for pid in pids))
        time.sleep({"restore": 0.5, "save": 0.03, "exit": 0.1}.get(phase, 0.0) * self._random.random())
        return any(_is_alive(pid) for pid in pids)

    def _kill(self, phase: str, pids: list[int]) -> None:
        """Announces and kills one process, or all processes in a tenth of the cases."""
        victims = pids if self._random.random() < 0.1 else [self._random.choice(pids)]
        step = self._step()
        with open(self._kills, "a") as file:
            print(*victims, sep="\n", file=file)
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.phases[phase] += 1
        which = "all" if len(victims) > 1 else f"process {pids.index(victims[0])}"
        number = f"{self.phases.total():>3} with {self._processes}"
        print(f"kill {number}: {which:9} in {phase:8} after step {step}", flush=True)

    def _wait_until(self, condition: Callable[[], Any]) -> None:
        """Polls until the condition holds or the supervisor has ended.

        Raises:
            TimeoutError: neither happens.
        """
        end = time.monotonic() + _TIMEOUT_S
        while not condition() and self._supervisor.poll() is None:
            if time.monotonic() > end:
                raise TimeoutError(f"nothing has happened for {_TIMEOUT_S:g} s; see {self._log.name}")
            time.sleep(_POLL_S)

    def _status(self) -> dict[str, Any]:
        try:
            return json.loads((self._run / "status.json").read_text())
        except (OSError, ValueError):
            return {}

    def _is_training(self, pids: list[int]) -> bool:
        """Whether this attempt has reached its loop."""
        status = self._status()
        return status.get("pid") in pids and status["state"] != "starting"

    def _is_restoring(self, pids: list[int]) -> bool:
        """Whether this attempt restores or compiles: it knows its steps and has done none of them."""
        status = self._status()
        return status.get("pid") in pids and status.get("total_steps") is not None

    def _is_saved(self) -> bool:
        """Whether the last checkpoint exists."""
        return (self._run / "checkpoints" / str(self._total)).is_dir()

    def _step(self) -> int:
        """The last step in metrics.jsonl."""
        file = self._run / "metrics.jsonl"
        if not file.exists():
            return 0
        with open(file, "rb") as opened:
            opened.seek(max(0, file.stat().st_size - 4096))
            lines = opened.read().split(b"\n")[1:]
        steps = [json.loads(line)["step"] for line in lines if line.startswith(b"{") and line.endswith(b"}")]
        return max(steps, default=0)


def kills_at_exit(kills: int) -> int:
    """Returns how many of the kills hit a run that exits; it may be over before the last of them."""
    return max(1, kills // 20)


def command(*words: str) -> list[str]:
    """Returns the words that start Convoy's command line."""
    return [sys.executable, "-m", "engine.cli.main", *words]


def start(words: list[str], env: dict[str, str], output: int) -> subprocess.Popen[bytes]:
    """Starts a program that writes to a descriptor."""
    return subprocess.Popen(words, env=env, stdout=output, stderr=output)


def train_unbroken(config: str, run: Path, processes: int) -> None:
    """Trains the same run without a kill."""
    options = ("launch", "local", f"--processes={processes}", "--devices-per-process=1", "--")
    words = command(*options, "train", config, f"--workdir={run}")
    with open(run.with_name("unbroken.txt"), "a") as log:
        if code := start(words, dict(os.environ), log.fileno()).wait():
            raise subprocess.CalledProcessError(code, words)


def saved_settings(devices: int, every: int = SAVE_EVERY) -> dict[str, Any]:
    """Returns the settings that store what is compared, and split parameters over so many devices."""
    return {
        "log__every": "1 step",
        "log__tensorboard": False,
        "log__examples": True,
        "checkpoint__every": f"{every} steps",
        "mesh__fsdp": devices,
    }


def write_config(folder: Path, variant: str, total: int, processes: int) -> str:
    """Writes the config of the run and returns the argument that names it."""
    config = storm_workloads.config(variant, total, **saved_settings(processes))
    pause = Hook(target="benchmarks.kill_storm.Pause", every=Duration(1, "steps"))
    config = dataclasses.replace(config, hooks={"pause": pause})
    folder.mkdir()
    RunDirectory(folder).write_config_text(to_text(config))
    return f"--config={folder}"


def differences(first: Outcome, second: Outcome, total: int) -> list[str]:
    """Returns a line for each difference between two outcomes, and for steps that the first one lacks or repeats."""
    found = []
    for what in ("losses", "state", "examples"):
        one, two = getattr(first, what), getattr(second, what)
        different = [str(key) for key in sorted({*one, *two}) if one.get(key) != two.get(key)]
        if different:
            found.append(f"{what}: {len(different)} of {len(two)} differ: {', '.join(different[:8])}")
    for what in ("losses", "examples"):
        if missing := sorted(set(range(1, total + 1)) ^ set(getattr(first, what))):
            found.append(f"{what}: steps that are missing or too many: {', '.join(map(str, missing[:8]))}")
    return found


def differences_of_layouts(first: Outcome, second: Outcome) -> list[str]:
    """Returns a line for each difference that other numbers of processes must not make: examples, and far losses."""
    found = []
    if different := [str(step) for step, read in second.examples.items() if first.examples.get(step) != read]:
        found.append(f"one process: examples of {len(different)} steps differ: {', '.join(different[:8])}")
    for step, text in second.losses.items():
        one, two = float.fromhex(first.losses.get(step, "nan")), float.fromhex(text)
        if not abs(one - two) <= TOLERANCE * abs(two):
            found.append(f"one process: the loss of step {step} is {two:g}, not {one:g}")
            break
    return found


def _children(parent: int) -> list[int]:
    """Returns the living children of a process, the oldest first."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            state, above = path.read_text().rpartition(")")[2].split()[:2]
            if int(above) == parent and state != "Z":
                found.append(int(path.parent.name))
    return sorted(found)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@dataclasses.dataclass(frozen=True)
class Result:
    """What a storm did to a run.

    Attributes:
        phases: kills by phase.
        attempts: attempts of the run.
        code: exit code of the supervisor.
        differences: a line for each difference from the unbroken run and for each failed check; empty if all is well.
        goodput: the table of goodput.
        lost: steps that were computed again.
    """

    phases: collections.Counter[str]
    attempts: int
    code: int
    differences: list[str]
    goodput: str
    lost: int


def compare(
    folder: Path, kills: int, seed: int, processes: Sequence[int] = (2,), variant: str = storm_workloads.DIGITS
) -> Result:
    """Trains the run `unbroken` in a folder without a kill, and the run `run` in a storm, and compares the two.

    With several numbers of processes, it also trains the run `alone`, in one process, without a kill.
    """
    shares = [kills * (i + 1) // len(processes) for i in range(len(processes))]  # kills up to the end of each number
    total, chooser, code = kills * STEPS_PER_KILL, random.Random(seed), 0
    phases: collections.Counter[str] = collections.Counter()
    least = 0
    for i, count in enumerate(processes):
        config = write_config(folder / f"config-{i}", variant, shares[i] * STEPS_PER_KILL, count)
        train_unbroken(config, folder / "unbroken", count)
        own = shares[i] - (shares[i - 1] if i else 0)
        with Storm(config, folder / "run", count, shares[i] * STEPS_PER_KILL, chooser) as storm:
            code = code or storm.kill_repeatedly(own)
        phases += storm.phases
        least += own - kills_at_exit(own)
    result = outcome(folder / "run")
    found = differences(result, outcome(folder / "unbroken"), total)
    if len(processes) > 1:
        train_unbroken(write_config(folder / "config-alone", variant, total, 1), folder / "alone", 1)
        found += differences_of_layouts(result, outcome(folder / "alone"))
    sums = goodput.sums(goodput.read(folder / "run" / "goodput.jsonl"))
    if (steps := sum(kinds["step"].steps for kinds in sums.values())) != total:
        found.append(f"goodput: {steps} useful steps, not {total}")
    if code:
        found.append(f"exit code {code}")
    if phases.total() < least:
        found.append(f"storm: only {phases.total()} kills")
    lost = sum(kinds["lost"].steps for kinds in sums.values())
    return Result(phases, len(sums), code, found, goodput_text(RunDirectory(folder / "run")), lost)


def _counts(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main() -> int:
    """Runs the storm and compares; returns 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument(
        "--seed", type=int, default=0, help="of the moments of kills and of the processes that they hit"
    )
    parser.add_argument("--processes", type=_counts, default=[2], metavar="N,N", help="of the run, one after the other")
    parser.add_argument("--variant", choices=(storm_workloads.DIGITS, *storm_workloads.VARIANTS), default="digits")
    parser.add_argument("--tiny", action="store_true", help="two kills of a run of one process, to try the program")
    args = parser.parse_args()
    if args.tiny:
        args.kills, args.processes = 2, [1]
    print(report.machine())
    folder = Path(tempfile.mkdtemp(prefix="convoy-kill-storm-"))
    print(
        f"{args.variant}, seed {args.seed}, {args.kills} kills, {args.kills * STEPS_PER_KILL} steps, in {folder}",
        flush=True,
    )
    result = compare(folder, args.kills, args.seed, args.processes, args.variant)
    print(", ".join(f"{count} in {phase}" for phase, count in result.phases.most_common()))
    print(result.goodput)
    for line in result.differences:
        print(f"DIFFERENT: {line}")
    print(
        f"{result.phases.total()} kills, {result.attempts} attempts, exit code {result.code}, "
        f"{len(result.differences)} differences"
    )
    return 1 if result.differences else 0


if __name__ == "__main__":
    sys.exit(main())
