"""The processes of a job on one machine: started, waited for, and killed as a whole.

No process outlives its launcher: on Linux the kernel kills them when it dies, and each process leads a process group
that is killed as a whole.
"""

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from engine.cluster import origins, output, parent, verdict
from engine.cluster.forwarding import Forwarder, Write
from engine.cluster.shutdown import RunThread
from engine.launch import timeouts
from engine.launch.signals import Signals
from engine.launch.stopped import StoppedProcesses


@contextlib.contextmanager
def reserved_port(host: str) -> Iterator[int]:
    """Yields a port of this machine at which, on Linux, only process 0 of the job can listen: it is not given away."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as reserved:
        if sys.platform.startswith("linux"):  # which lets process 0 listen at the port of a socket that does not
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind((host, 0))
        port: int = reserved.getsockname()[1]
        if not sys.platform.startswith("linux"):
            reserved.close()
        yield port


class Job:
    """The processes of one launch on this machine. A context manager that kills all of them on exit.

    Args:
        folder: for the verdicts of the processes.
        write: receives their output, from threads, as in `Forwarder`.
        show: receives sentences for the user.
    """

    def __init__(self, folder: Path, write: Write | None = None, show: Callable[[str], None] = output.show):
        self.folder = folder
        """The folder of the verdicts."""
        self.ended_because: dict[int, str] = {}
        """Processes that the launcher has ended because they were stopped, with the reason."""
        self.killed: set[int] = set()
        """Processes that the launcher has killed, for whatever reason."""
        self.output_is_complete = True
        """Whether nothing waits for a reader once `wait` has returned: a signal ends the wait of a result."""
        self._write, self._show = write, show
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._forwarders: dict[int, Forwarder] = {}
        self._exits: queue.SimpleQueue[tuple[int, int, float]] = queue.SimpleQueue()  # index, code, time

    @property
    def pids(self) -> dict[int, int]:
        """Index -> process id."""
        return {i: process.pid for i, process in self._processes.items()}

    def start(
        self, command: Sequence[str], environments: Mapping[int, dict[str, str]], alone: bool, cwd: str | None = None
    ) -> None:
        """Starts one process per environment, by index, and forwards its output, with `alone` unchanged."""
        kill_with_parent = parent.kill_with(os.getpid())
        self._forwarders = {i: Forwarder(None if alone else f"[{i}] ", self._write) for i in environments}
        former = signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a worker of Ray blocks SIGINT, as its children would
        try:
            for i, environment in environments.items():
                self._processes[i] = subprocess.Popen(
                    command,
                    env=environment,
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=self._forwarders[i].stdout,  # also of a single process, which must not wait for a reader
                    stderr=self._forwarders[i].stderr,
                    process_group=0,  # Ctrl-C on a terminal reaches only the launcher, which forwards it once
                    preexec_fn=kill_with_parent,
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
        for i, process in self._processes.items():
            origins.record_start(self.folder, i, process.pid)
        for i, process in self._processes.items():  # threads start after the last fork
            self._forwarders[i].start()
            _start_thread(self._wait_for, i, process)

    def wait(self, grace_s: float, signals: Signals) -> dict[int, tuple[int, float]]:
        """Returns the exit code and time of each process; kills the rest `grace_s` after the first failure."""
        codes: dict[int, tuple[int, float]] = {}
        kill_at: float | None = None
        stopped = StoppedProcesses(several=len(self._processes) > 1)
        while len(codes) < len(self._processes):
            left = timeouts.STOPPED_POLL_S if kill_at is None else max(0.0, kill_at - time.monotonic())
            try:
                i, code, when = self._exits.get(timeout=left)
            except queue.Empty:
                if kill_at is not None:
                    self.kill()
                    kill_at = None
                else:
                    self._end_stopped(stopped, codes)
                continue
            codes[i] = (code, when)
            # The others wait in vain for a process that ended with 0 in the middle of its work, too.
            if (code or verdict.is_unfinished(self.folder, i)) and kill_at is None:
                kill_at = time.monotonic() + grace_s
        complete = [forwarder.join(lambda: signals.received) for forwarder in self._forwarders.values()]
        self.output_is_complete = all(complete)
        return codes

    def _end_stopped(self, stopped: StoppedProcesses, codes: Collection[int]) -> None:
        """Names processes that are stopped, and ends those for which the others have waited too long."""
        running = {i: self._pids(i) for i in self._processes if i not in codes}
        to_end = stopped.poll(running, ended=len(codes))
        for text in stopped.messages:
            self._show(f"convoy launch: {text}")
        for i, text in to_end.items():
            self.ended_because.setdefault(i, text)
            self.killed.add(i)
            for pid in running[i]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _pids(self, i: int) -> set[int]:
        """Returns the pid of a process, and that of the verb, if the process is a shell that has started it."""
        leader, verb = self._processes[i].pid, verdict.running_pid(self.folder, i)
        with contextlib.suppress(ProcessLookupError):
            if verb is not None and os.getpgid(verb) == leader:  # else the system has given the pid to another program
                return {leader, verb}
        return {leader}

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()
        for process in self._processes.values():
            _kill_group(process.pid)

    def send(self, number: int) -> None:
        """Sends a signal to each process that is still running."""
        for process in self._processes.values():
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)

    def _wait_for(self, i: int, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        when = time.monotonic()
        origins.record_exit(self.folder, i, code)
        _kill_group(process.pid)  # its workers keep its output open
        self._exits.put((i, code if code >= 0 else 128 - code, when))

    def kill(self) -> None:
        """Kills the processes that are still running."""
        for i, process in self._processes.items():
            if process.returncode is None:
                self.killed.add(i)
                process.kill()  # not its group: without the resource tracker, shared memory would be leaked


def _start_thread(target: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = RunThread(target, target.__name__.strip("_"), arguments)
    thread.start()
    return thread


def _kill_group(leader: int) -> None:
    """Ends the group of a process that has exited: waits for its workers to clean up, then sends SIGKILL."""
    end = time.monotonic() + timeouts.TIDY_S
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: PermissionError after the exit
        while time.monotonic() < end:
            os.killpg(leader, 0)
            time.sleep(0.02)
        os.killpg(leader, signal.SIGKILL)
