"""Runs for tests: a small config, the command line as a process, and readers of the files of a run."""

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from engine.config import defaults, validate
from engine.config.override import assign
from engine.config.schema import Config

COMPILING = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
"""Environment of runs whose bits no test compares with those of other programs: LLVM compiles them in less time."""


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


def convoy(*args: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line to its end, on one CPU device."""
    return subprocess.run(command(*args), capture_output=True, text=True, cwd=cwd, env=environment(**env), timeout=300)


def start(*args: str, cwd: Path | None = None, **env: str) -> subprocess.Popen[str]:
    """Starts the command line; the caller must end the process."""
    return subprocess.Popen(
        command(*args), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd, env=environment(**env)
    )


def command(*args: str) -> list[str]:
    """Returns the words that start the command line."""
    return [sys.executable, "-m", "engine.cli.main", *args]


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
    done = subprocess.run(
        [sys.executable, "-c", launcher], capture_output=True, text=True, env=environment(), timeout=300
    )
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
