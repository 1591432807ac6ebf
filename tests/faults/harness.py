"""Starts small training runs as real processes, and compares what they computed bit for bit.

The tests cause faults from outside, in the processes and files of a run. `benchmarks/outcome.py` reads what a run
computed; `conftest.py` prints the table of cases.
"""

import contextlib
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
from tests import runs, warm

STEPS = 60
SAVE_EVERY = 5
EVALUATED: dict[str, Any] = {"evaluations__heldout__every": "12 steps"}  # setting of a run with an evaluation
MARK = "CONVOY_TEST_JOB"  # in the environment of every process of a job


class Pause:
    """A hook that makes each step last longer, so that a fault happens during a step."""

    def __init__(self, seconds: float):
        self._seconds = seconds

    def run(self, trainer: Any, state: Any, step: int) -> None:
        time.sleep(self._seconds)


def config(folder: Path, *, pause: float = 0.0, **settings: Any) -> str:
    """Writes the config of a run, and returns the `--config` argument.

    It has 60 steps, a save every 5 steps, a log of its examples, the smallest model of tests/zoo.py unless a setting is
    of the task, and no evaluation unless a setting is of one. `pause` adds seconds to each step; `train__seed=1` sets
    a field.
    """
    folder.mkdir(parents=True)
    RunDirectory(folder).write_config_text(to_text(runs.config(**completed(pause, **settings))))
    return f"--config={folder}"


def completed(pause: float = 0.0, **settings: Any) -> dict[str, Any]:
    """The settings of `config`, with those that it adds, for `runs.config`."""
    hooks = {"pause": {"target": "tests.faults.harness.Pause", "every": "1 step", "seconds": pause}} if pause else {}
    usual: dict[str, Any] = {"train__total": f"{STEPS} steps", "log__examples": True}
    if not any(name.startswith("evaluations") for name in settings):
        usual["evaluations"] = {}
    if not any(name.startswith("task") for name in settings):
        usual["task__model"] = "linear"
    settings = {**usual, **settings}
    settings["hooks"] = {**hooks, **settings.get("hooks", {})}
    return settings


class Job:
    """One run of the command line with all processes that it starts. A context manager: its exit kills what is left.

    Args:
        args: of the command line, such as "train", "--config=...".
        processes: of training; more than one are started by `convoy launch local`, with one CPU device each.
        devices: of each training process.
        env: further variables.
        prefix: the start of the command that runs the command line, such as "unshare", "-rm".
        first: code that the process runs before it runs the command line, such as `own_mounts`.
        into: descriptor that gets the output; by default a file, for `output`.
    """

    def __init__(
        self,
        *args: str,
        processes: int = 1,
        devices: int = 1,
        prefix: tuple[str, ...] = (),
        first: str = "",
        into: int | None = None,
        **env: str,
    ):
        launch = ("launch", "local", f"--processes={processes}", f"--devices-per-process={devices}", "--")
        self.mark, self.processes = uuid.uuid4().hex, processes
        self.started = time.monotonic()
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed in __exit__
        self.process = start(
            [*prefix, *runs.command(*(launch if processes > 1 else ()), *args, first=first)],
            runs.environment(**{**runs.COMPILING, "JAX_NUM_CPU_DEVICES": str(devices), MARK: self.mark, **env}),
            self._output.fileno() if into is None else into,
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
        """Everything printed so far."""
        self._output.seek(0)
        return self._output.read()

    def end(self, seconds: float = 300.0) -> int:
        """Waits for the job's end and returns its exit code, 128 + the signal for a killed one."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s:\n{self.output}") from None
        return code if code >= 0 else 128 - code

    def until(self, condition: Callable[[], Any], seconds: float = 300.0, poll_s: float = 0.03) -> Any:
        """Polls until the condition is true and returns its value; the job must not end before."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.output}"
            assert time.monotonic() < end, f"not within {seconds} s:\n{self.output}"
            time.sleep(poll_s)
        return value

    def until_step(self, run: Path, step: int) -> None:
        """Waits until the metrics of a step are written."""
        self.until(lambda: step in losses(run))

    def pids(self) -> list[int]:
        """Every living process of the job, whichever process started it."""
        return [pid for pid, env in _environments() if env.get(MARK) == self.mark]

    def left(self) -> list[int]:
        """The processes that still live 10 s after the end of the job; SIGKILL ends a process a moment later."""
        deadline = time.monotonic() + 10
        while (pids := self.pids()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return pids

    def pid_of(self, index: int) -> int:
        """The pid of a training process; in a job of one process, the process for which the command waits.

        In a job of several, the pid of the launcher until that process has started.

        Its data workers have the same variables, but the launcher makes only the training process lead a group.
        """
        for pid, env in _environments():
            if env.get(MARK) == self.mark and env.get("CONVOY_PROCESS_ID") == str(index):
                with contextlib.suppress(ProcessLookupError):
                    if os.getpgid(pid) == pid:
                        return pid
        return (runs.child(self.process.pid) if self.processes == 1 else None) or self.process.pid

    def signal(self, index: int, number: int) -> float:
        """Sends a signal to a training process; returns the monotonic time at which it was sent."""
        os.kill(self.pid_of(index), number)
        return time.monotonic()


def start(words: list[str], env: dict[str, str], output: int) -> subprocess.Popen[bytes] | warm.Process:
    """Starts a program in a session of its own, as a fork (`tests/warm.py`) where it may be one."""
    with open(os.devnull) as nothing:
        if runs.is_warm(words, env):
            streams, launches = (nothing.fileno(), output, output), runs.launches(words)
            return warm.Process(words, env, streams, cwd=os.getcwd(), start_new_session=True, launches=launches)
        return subprocess.Popen(words, stdin=nothing, stdout=output, stderr=output, start_new_session=True, env=env)


@contextlib.contextmanager
def start_processes(
    args: Sequence[Sequence[str]], env: Sequence[Mapping[str, Any]], first: str = ""
) -> Iterator[list[Job]]:
    """Starts the processes of one run without a launcher, each with its own arguments and variables; see `Job`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with contextlib.ExitStack() as stack:
        jobs = []
        for index, (own_args, own_env) in enumerate(zip(args, env, strict=True)):
            who = {"COORDINATOR": address, "NUM_PROCESSES": str(len(args)), "PROCESS_ID": str(index)}
            settings: dict[str, Any] = {**own_env, **{f"CONVOY_{name}": value for name, value in who.items()}}
            jobs.append(stack.enter_context(Job(*own_args, first=first, **settings)))
        yield jobs


def own_mounts(*commands: str) -> str:
    """Code with which a process enters a mount namespace of its own and runs commands of a shell in it, as root."""
    return f"""
import os, subprocess
os.unshare(os.CLONE_NEWNS)
for command in ("mount --make-rprivate /", *{commands!r}):
    subprocess.run(command, shell=True, check=True)
"""


def kill(pid: int) -> None:
    """Sends SIGKILL to a process, unless it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _environments() -> Iterator[tuple[int, dict[str, str]]]:
    """Yields the pid and environment of each living process of this machine whose environment may be read."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            if (path / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                continue
            variables = (path / "environ").read_bytes().split(b"\0")
            yield int(path.name), dict(v.decode(errors="replace").split("=", 1) for v in variables if b"=" in v)


def attempts(run: Path) -> dict[int, int]:
    """step -> the last attempt that computed it."""
    if not (run / "metrics.jsonl").exists():
        return {}
    lines = runs.complete_lines(run / "metrics.jsonl")
    return {line["step"]: line["attempt"] for line in lines if "loss" in line}


def losses(run: Path) -> dict[int, float]:
    """step -> loss, from the complete lines of metrics.jsonl."""
    file = run / "metrics.jsonl"
    if not file.exists():
        return {}
    return runs.rows(run)


def status(run: Path) -> dict[str, Any]:
    """The content of status.json."""
    return runs.status(run)


def undisturbed(folder: Path, *, processes: int = 1, devices: int = 1, **settings: Any) -> Outcome:
    """The outcome of a run without a fault."""
    where = config(folder / "config", **settings)
    with Job("train", where, f"--workdir={folder / 'run'}", processes=processes, devices=devices) as job:
        assert job.end() == 0, job.output
    return outcome(folder / "run")


class FaultyRun:
    """One run of two processes that suffers several faults: a start resumes from one fault and suffers the next one.

    Args:
        folder: of the run and its config.
        name: of the run directory.
        settings: for `config`; each step takes 50 ms more.
    """

    def __init__(self, folder: Path, name: str = "run", **settings: Any):
        self.run = folder / name
        self.rows: list[dict[str, Any]] = []  # columns of each fault from which the run has resumed
        self._config = config(folder / "config", pause=0.05, **settings)

    @contextlib.contextmanager
    def start(self, *words: str, steps: int = 6, first: str = "") -> Iterator[Job]:
        """Starts or resumes the run and yields its job some steps later, at least 12 after the begin of the run.

        `words` are further ones of the command line; `first` is as for `Job`.
        """
        resumes = self.run.exists()
        before, attempt = (max(losses(self.run)), status(self.run)["attempt"]) if resumes else (12 - steps, 0)
        newest = max(saved(self.run), default=0)
        with Job("train", self._config, f"--workdir={self.run}", *words, processes=2, first=first) as job:
            job.until(lambda: attempt + 1 in attempts(self.run).values())
            recovered = time.monotonic() - job.started
            begin = min(step for step, number in attempts(self.run).items() if number > attempt)
            assert begin == newest + 1  # steps that are repeated: a save that was incomplete, too
            if resumes:
                self.rows.append({"recovered_s": recovered, "lost": max(0, before - begin + 1), "bitwise": True})
            job.until_step(self.run, before + steps)
            yield job

    def finish(self, whole: Outcome) -> None:
        """Resumes the run to its end, and compares it with the undisturbed run bit for bit."""
        with self.start(steps=1) as job:
            assert job.end() == 0, job.output
        assert outcome(self.run) == whole
