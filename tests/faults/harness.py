"""The fault bench: one small run by real processes, what it computed in a form that is compared bit for bit.

Owns: starting a job, waiting for what it does, finding its processes, and its
losses as they come. Does not own: the faults (each test does its own to the processes and files from outside), what a
run has computed (`benchmarks/outcome.py`), and the table of cases (`conftest.py`).

Terms. *Job*: one start of the command line, with all processes that come of it. *Rank*: one of its training processes.
*Outcome*: losses, final state and examples of a run.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.outcome import Outcome, outcome
from benchmarks.outcome import saved as saved
from benchmarks.outcome import state_arrays as state_arrays
from benchmarks.outcome import state_hashes as state_hashes
from engine.config.text import to_text
from engine.run.directory import RunDirectory
from tests import runs

STEPS = 60
SAVE_EVERY = 5
MARK = "CONVOY_TEST_JOB"  # in the environment of every process of a job


class Pause:
    """A hook that makes each step last a while, so that a fault falls into one."""

    def __init__(self, seconds: float):
        self._seconds = seconds

    def run(self, trainer: Any, state: Any, step: int) -> None:
        time.sleep(self._seconds)


def config(folder: Path, *, pause: float = 0.0, **settings: Any) -> str:
    """Writes a config of 60 steps with a save every 5 and a ledger; returns the argument that names it.

    `pause` makes each step last so many seconds more; `train__seed=1` sets a field.
    """
    folder.mkdir(parents=True)
    hooks = {"pause": {"target": "tests.faults.bench.Pause", "every": "1 step", "seconds": pause}} if pause else {}
    settings = {"train__total": f"{STEPS} steps", "log__examples": True, **settings}
    settings["hooks"] = {**hooks, **settings.get("hooks", {})}
    RunDirectory(folder).write_config_text(to_text(runs.config(**settings)))
    return f"--config={folder}"


class Job:
    """One start of the command line. A context manager: nothing of it is left when it is closed.

    Args:
        words: of the command line, as "train", "--config=...".
        ranks: more than one starts them by `convoy launch local`, with one CPU device each.
        devices: of each rank.
        env: further variables.
        prefix: words of a program that starts the command line, as "unshare", "-rm".
    """

    def __init__(self, *words: str, ranks: int = 1, devices: int = 1, prefix: tuple[str, ...] = (), **env: str):
        launch = ("launch", "local", f"--processes={ranks}", f"--devices-per-process={devices}", "--")
        self.mark, self.ranks = uuid.uuid4().hex, ranks
        self.started = time.monotonic()
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed in __exit__
        self.process = subprocess.Popen(
            [*prefix, *runs.command(*(launch if ranks > 1 else ()), *words)],
            stdout=self._output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=runs.environment(**{"JAX_NUM_CPU_DEVICES": str(devices), MARK: self.mark, **env}),
        )

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *exception: object) -> None:
        for pid in self.pids():
            kill(pid)
        self.process.wait()
        self._output.close()

    @property
    def output(self) -> str:
        """All that was printed so far."""
        self._output.seek(0)
        return self._output.read()

    def end(self, seconds: float = 180.0) -> int:
        """Waits for the job's end and returns its exit code, 128 + the signal for a killed one."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s:\n{self.output}") from None
        return code if code >= 0 else 128 - code

    def until(self, condition: Callable[[], Any], seconds: float = 180.0) -> Any:
        """Polls until the condition is true and returns its value; the job must not end before."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.output}"
            assert time.monotonic() < end, f"not within {seconds} s:\n{self.output}"
            time.sleep(0.01)
        return value

    def until_step(self, run: Path, step: int) -> None:
        """Waits until the metrics of a step are written."""
        self.until(lambda: step in losses(run))

    def pids(self) -> list[int]:
        """Every process of the job that is alive, whoever started it."""
        return [pid for pid, env in _environments() if env.get(MARK) == self.mark]

    def rank(self, index: int) -> int:
        """The pid of a rank; of a job of one process, that process."""
        for pid, env in _environments():
            if env.get(MARK) == self.mark and env.get("CONVOY_PROCESS_ID") == str(index):
                return pid
        return self.process.pid

    def signal(self, index: int, number: int) -> float:
        """Sends a signal to a rank; returns the monotonic time of it."""
        os.kill(self.rank(index), number)
        return time.monotonic()


@contextlib.contextmanager
def ranks(
    words: Sequence[Sequence[str]], env: Sequence[Mapping[str, Any]], prefix: tuple[str, ...] = ()
) -> Iterator[list[Job]]:
    """Starts the ranks of one run by hand, one after the other: each with words and variables of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with contextlib.ExitStack() as stack:
        jobs = []
        for index, (own_words, own_env) in enumerate(zip(words, env, strict=True)):
            who = {"COORDINATOR": address, "NUM_PROCESSES": str(len(words)), "PROCESS_ID": str(index)}
            settings: dict[str, Any] = {**own_env, **{f"CONVOY_{name}": value for name, value in who.items()}}
            jobs.append(stack.enter_context(Job(*own_words, prefix=prefix, **settings)))
        yield jobs


def kill(pid: int) -> None:
    """Kills a process at once, unless it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _environments() -> Iterator[tuple[int, dict[str, str]]]:
    """The processes of this machine with their environments, as far as they may be read; none that has ended."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            if (path / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                continue
            words = (path / "environ").read_bytes().split(b"\0")
            yield int(path.name), dict(w.decode(errors="replace").split("=", 1) for w in words if b"=" in w)


def attempts(run: Path) -> dict[int, int]:
    """step -> the last attempt that did it."""
    if not (run / "metrics.jsonl").exists():
        return {}
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["attempt"] for line in lines if "loss" in line}


def losses(run: Path) -> dict[int, float]:
    """step -> loss, as far as complete lines are written."""
    file = run / "metrics.jsonl"
    if not file.exists():
        return {}
    return runs.rows(run)


def status(run: Path) -> dict[str, Any]:
    """What status.json holds."""
    return runs.status(run)


def unbroken(folder: Path, *, ranks: int = 1, devices: int = 1, **settings: Any) -> Outcome:
    """The outcome of a run that nothing happens to."""
    where = config(folder / "config", **settings)
    with Job("train", where, f"--workdir={folder / 'run'}", ranks=ranks, devices=devices) as job:
        assert job.end() == 0, job.output
    return outcome(folder / "run")
