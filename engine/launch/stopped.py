"""Finds processes of a job that a signal has stopped, for which the others wait: names them, then ends them.

A job that is stopped as a whole is only named, since nobody waits: a user or a scheduler has suspended it. Times in
which the launcher itself was stopped do not count. Only Linux tells which processes are stopped.
"""

import time
from collections.abc import Collection, Mapping

from engine.cluster import origins
from engine.launch import timeouts


class StoppedProcesses:
    """Follows which processes of one job are stopped.

    Args:
        several: whether the job has several processes.
    """

    def __init__(self, several: bool):
        self._several = several
        self._stopped: dict[int, float] = {}  # index -> seconds so far
        self._named: set[int] = set()
        self._polled = time.monotonic()
        self.messages: list[str] = []
        """Sentences for the user that were added by the latest `poll`."""

    def poll(self, running: Mapping[int, Collection[int]], ended: int) -> dict[int, str]:
        """Returns the processes that have to be ended, each with the reason.

        Args:
            running: index -> pids of a process that runs: its own, and that of the program that it has started.
            ended: number of processes that have ended.
        """
        now = time.monotonic()
        passed, self._polled = min(now - self._polled, 2 * timeouts.STOPPED_POLL_S), now
        stopped = {index: pid for index, pids in running.items() for pid in pids if origins.is_stopped(pid)}
        self._stopped = {index: self._stopped.get(index, 0.0) + passed for index in stopped}
        self.messages = [f"{self._name(index)} continues." for index in sorted(self._named & {*running} - {*stopped})]
        self._named &= {*stopped}
        others_wait = bool(ended) or len(stopped) < len(running)
        for index, seconds in sorted(self._stopped.items()):
            if seconds >= timeouts.STOPPED_NAMED_S and index not in self._named:
                self._named.add(index)
                self.messages.append(self._text(index, stopped[index], seconds, others_wait))
        return {
            index: f"{self._name(index)} (pid {stopped[index]}) was stopped by a signal for {seconds:.0f} s, and the "
            "others waited for it. The same command resumes from the newest checkpoint."
            for index, seconds in self._stopped.items()
            if others_wait and seconds >= timeouts.STOPPED_S
        }

    def _name(self, index: int) -> str:
        return f"process {index}" if self._several else "the process"

    def _text(self, index: int, pid: int, seconds: float, others_wait: bool) -> str:
        end = f" The launcher ends it after {timeouts.STOPPED_S:.0f} s, since the others wait for it."
        return (
            f"{self._name(index)} (pid {pid}) has been stopped by a signal, such as SIGSTOP, for {seconds:.0f} s. "
            f"`kill -CONT {pid}` continues it.{end if others_wait else ''}"
        )
