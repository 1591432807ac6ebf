"""Runs of a sweep as processes on this machine, each with its share of the cores, the memory and the devices.

No run outlives the driver: on Linux the kernel kills it with the driver.
"""

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from engine.base.formatting import size_text
from engine.base.host import free_share
from engine.cluster import parent
from engine.sweeps import timeouts
from engine.sweeps.machine import Share
from engine.sweeps.workers import Job

LEAST_FREE = 0.05
"""Share of the memory of this machine. With less, the run that is most above its share is killed."""
_PROCESSES, _PAGE = Path("/proc"), os.sysconf("SC_PAGE_SIZE")


@dataclass
class _Running:
    process: "subprocess.Popen[bytes]"
    share: Share
    log: Path


@dataclass
class LocalWorkers:
    """Executes jobs as processes on this machine.

    Args:
        shares: what each job may use (`machine.py`); as many jobs run at the same time.
        logs: the folder of the output of each job, `NAME.log`.
    """

    shares: Sequence[Share]
    logs: Path
    poll_s: float = timeouts.POLL_S
    outlive_driver: bool = False
    _running: dict[str, _Running] = field(default_factory=dict)
    _check_memory_at: float = 0.0

    @property
    def slots(self) -> int:
        """Number of jobs that may run at the same time."""
        return len(self.shares)

    def start(self, job: Job) -> None:
        """Starts a process in a free share. Its output is appended to its log."""
        used = [id(running.share) for running in self._running.values()]
        share = next(share for share in self.shares if id(share) not in used)
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{job.name}.log"
        with open(log, "ab") as output, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of JAX, if it is loaded, about forks: this one runs a program at once
            process = subprocess.Popen(
                [sys.executable, "-m", "engine.cli.main", *job.words],
                env={**os.environ, **share.variables, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C on a terminal reaches the driver only, which asks the runs to stop
                preexec_fn=_prepare(share),
            )
        self._running[job.name] = _Running(process, share, log)

    def ended(self) -> dict[str, int]:
        """Returns name -> exit code of the jobs that have ended since the last call."""
        self._keep_memory_free()
        codes = {name: running.process.poll() for name, running in self._running.items()}
        found = {name: code if code >= 0 else 128 - code for name, code in codes.items() if code is not None}
        for name in found:
            _kill_group(self._running.pop(name).process.pid)
        return found

    def stop(self, name: str) -> None:
        """Sends SIGTERM to a job: it saves and ends."""
        if (running := self._running.get(name)) is not None:
            with suppress(ProcessLookupError):
                os.kill(running.process.pid, signal.SIGTERM)

    def close(self) -> None:
        """Kills all jobs."""
        for running in self._running.values():
            _kill_group(running.process.pid)
            running.process.wait()
        self._running.clear()

    def _keep_memory_free(self) -> None:
        """Kills the job that is most above its share of the memory, before the kernel kills any process."""
        if time.monotonic() < self._check_memory_at or not self._running:
            return
        self._check_memory_at = time.monotonic() + timeouts.MEMORY_POLL_S
        if free_share() >= LEAST_FREE:
            return
        used = memory_of_groups()
        excess = {
            name: used.get(running.process.pid, 0) - running.share.memory
            for name, running in self._running.items()
            if running.share.memory is not None
        }
        name = max(excess, key=lambda name: excess[name], default=None)
        if name is None or excess[name] <= 0:
            return
        running = self._running[name]
        _kill_group(running.process.pid)
        text = (
            f"out of memory: this machine has less than {LEAST_FREE:.0%} of its memory left, and this run used "
            f"{size_text(used[running.process.pid])}, more than its share of {size_text(running.share.memory or 0)}. "
            "Use fewer trials at once (--parallel) or a smaller batch."
        )
        with open(running.log, "a") as output:
            output.write(f"{text}\n")


def memory_of_groups() -> Mapping[int, int]:
    """Returns process group -> resident memory of its processes in bytes; empty if the system does not state it."""
    found: dict[int, int] = {}
    for entry in _PROCESSES.glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            words = entry.read_text().rpartition(")")[2].split()
            found[int(words[2])] = found.get(int(words[2]), 0) + int(words[21]) * _PAGE
    return found


def _prepare(share: Share) -> Callable[[], None]:
    """Returns what a new process does before it runs the program: it binds itself to its cores and to its parent."""
    die_with_parent = parent.kill_with(os.getpid())

    def prepare() -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, share.cores)
        if die_with_parent is not None:
            die_with_parent()

    return prepare


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
