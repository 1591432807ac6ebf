"""Runs for tests: a small config, the command line as a process, and readers of the files of a run."""

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from engine.config import defaults, validate
from engine.config.override import assign
from engine.config.schema import Config
from tests import warm

COMPILING = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
"""Environment of runs whose bits no test compares with those of other programs: LLVM compiles them in less time."""


type Started = subprocess.Popen[str] | warm.Process
MAIN = ["-m", "engine.cli.main"]
THEN_MAIN = "\nimport runpy\nrunpy.run_module('engine.cli.main', run_name='__main__', alter_sys=True)\n"
"""End of a program for `python -c` that runs the command line."""
WARM_VERBS = {"train", "evaluate", "predict", "explain", "plan", "compile", "launch", "supervise", "sweep"}
"""Verbs that import most of what the forks of `warm.py` have imported already, or start these."""
LAUNCHERS = {f"benchmarks.{name}" for name in ("accelerator", "decoder", "first_step", "slow_storage", "sweep")}
"""Benchmarks that compute nothing themselves."""


def config(**settings: Any) -> Config:
    """A config of tests/zoo.py: 64 examples, batches of 16, 10 steps; `train__total="5 steps"` sets a field."""
    c = defaults()
    c.name = "zoo"
    c.task = dict(target="tests.zoo.Classify")
    c.data = dict(target="tests.zoo.source")
    c.train.total = "10 steps"
    c.train.global_batch_size = 16
    c.optimizer.learning_rate = 0.01
    c.evaluations.heldout = dict(data=dict(target="tests.zoo.source", n=37, seed=9), every="4 steps")
    c.checkpoint.every = "5 steps"
    c.log.every = "1 step"
    c.log.tensorboard = False
    c.log.progress = "none"
    c.cache.compiled = False
    for name, value in settings.items():
        assign(c, name.replace("__", "."), value)
    return validate(c)


def rows(run: Path, name: str = "loss") -> dict[int, Any]:
    """Returns step -> value of a metric; the last attempt of a step is valid. The run may be writing a line."""
    return {line["step"]: line[name] for line in complete_lines(run / "metrics.jsonl") if name in line}


def complete_lines(file: Path) -> list[dict[str, Any]]:
    """Returns the complete lines of a file of JSON lines, to which a process may be writing."""
    text = file.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def status(run: Path) -> dict[str, Any]:
    """Returns the content of status.json."""
    return json.loads((run / "status.json").read_text())


def without_gloo(output: str) -> list[str]:
    """Returns the lines of a program except for those of Gloo, whose threads write into each other's lines."""
    return [line for line in output.splitlines() if "[Gloo]" not in line and "connected peer ranks" not in line]


def convoy(*args: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line to its end, on one CPU device."""
    return run(command(*args), cwd=cwd, env=environment(**env))


def run(
    words: Sequence[object], cwd: Path | None = None, env: dict[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end, `[sys.executable, "-m", ...]` or `"-c"`, as a fork (`warm.py`) where it may be one."""
    texts, env = [*map(str, words)], environment() if env is None else env
    process = begin(texts, cwd, env, apart=True)
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return subprocess.CompletedProcess(texts, process.wait(), stdout, stderr)


def start(*args: str, cwd: Path | None = None, **env: str) -> Started:
    """Starts the command line; the caller must end the process."""
    return begin(command(*args), cwd, environment(**env), apart=False)


def begin(words: list[str], cwd: Path | None, env: dict[str, str], apart: bool) -> Started:
    """Starts a program with pipes for its output: two for standard output and error `apart`, or one for both."""
    if is_warm(words, env):
        return _fork(words, cwd, env, apart)
    errors = subprocess.PIPE if apart else subprocess.STDOUT
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=cwd, env=env)


def is_warm(words: list[str], env: dict[str, str]) -> bool:
    """Whether a program is started as a fork: a verb that imports JAX or launches such verbs, or other code."""
    return warm.can_fork(words, env) and (words[1:3] != MAIN or (words[3:] or [""])[0] in WARM_VERBS)


def launches(words: list[str]) -> bool:
    """Whether a program only starts others, which are then forks of it."""
    if words[1:3] == MAIN or words[2].endswith(THEN_MAIN):
        return words[3] in ("launch", "supervise", "sweep")
    return words[2] in LAUNCHERS or "launch(" in words[2] or "/docs/images/" in words[2]


def _fork(words: list[str], cwd: Path | None, env: dict[str, str], apart: bool) -> warm.Process:
    """Forks a program, with pipes as `begin` says."""
    out, out_end = os.pipe()
    err, err_end = os.pipe() if apart else (None, out_end)
    stdout, stderr = open(out), None if err is None else open(err)  # noqa: SIM115, closed with the process
    folder = None if cwd is None else os.fspath(cwd)
    try:
        where = {"cwd": folder or os.getcwd(), "launches": launches(words)}
        return warm.Process(words, env, (0, out_end, err_end), stdout, stderr, **where)
    finally:
        for descriptor in {out_end, err_end}:
            os.close(descriptor)


def command(*args: str, first: str = "") -> list[str]:
    """Returns the words that start the command line. `first` is code that the same process runs before."""
    return [sys.executable, *(["-c", first + THEN_MAIN] if first else MAIN), *args]


def child(pid: int) -> int | None:
    """Returns the first child of a process: a command of one process waits for the child that does its work."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(found[0]) if found else None


def environment(**env: str) -> dict[str, str]:
    """Returns the environment of a process with one CPU device; a given PYTHONPATH is prepended to the current one."""
    if "PYTHONPATH" in env:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (env["PYTHONPATH"], os.environ.get("PYTHONPATH"))))
    return {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", **env}


def lines_by_process(text: str, *arguments: object, processes: int) -> dict[str, list[str]]:
    """Runs a program in several processes to its end; returns index of the process, as text -> its output lines."""
    words = ["-c", text, *map(str, arguments)]
    launcher = (
        "import sys; from engine.launch.local import launch; "
        f"sys.exit(launch([sys.executable, *{words!r}], processes={processes}))"
    )
    done = run([sys.executable, "-c", launcher])
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    return {str(i): [line[4:] for line in lines if line.startswith(f"[{i}] ")] for i in range(processes)}


@contextlib.contextmanager
def compilations() -> Iterator[list[tuple[str, str]]]:
    """Yields a list that receives the function and the thread of each program that JAX compiles in this process."""
    found: list[tuple[str, str]] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found.append((str(kwargs["fun_name"]), threading.current_thread().name))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def limit(seconds: float) -> float:
    """Returns the seconds that something may take while this machine is as busy as it is now.

    Where more programs want to run than there are cores, all of them take longer. The load of the last minute shows
    that, and the time in which this process gets 50 ms of a core: the load of a container is that of its host.
    """
    begin, computed = time.perf_counter(), time.process_time()
    while time.process_time() - computed < 0.05:
        pass
    delay = (time.perf_counter() - begin) / 0.05
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return seconds * max(1.0, delay, os.getloadavg()[0] / cores)


def wait_for(condition, process, seconds=180):
    """Polls until the condition holds; the process must still be running then."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.005)


def ends_workers(seconds: float = 60) -> bool:
    """Returns whether no child process of `multiprocessing` is left soon: a killed one ends a moment later."""
    end = time.monotonic() + seconds
    while children := multiprocessing.active_children():
        if time.monotonic() > end:
            print("left:", children)
            return False
        time.sleep(0.01)
    return True


def shared_memory() -> int:
    """Returns how many pieces of the shared memory of data workers this process has mapped (Linux)."""
    return Path("/proc/self/maps").read_text().count("/memfd:convoy")


def saved_steps(run: Path) -> set[str]:
    """Returns the names of the complete steps of a run."""
    return {path.parent.name for path in run.glob("checkpoints/*/commit_success.txt") if path.parent.name.isdecimal()}
