"""How the processes of one attempt have ended, on whatever node, as their launcher knows it."""

import dataclasses
import time
from pathlib import Path

from engine.cluster.exit_status import ExitStatus
from engine.launch import local
from engine.launch.local import ProcessExit
from engine.ray.process import News
from engine.storage.mounts import local_path


class Exits:
    """Collects the ends of the processes.

    Args:
        processes: number of processes.
    """

    def __init__(self, processes: int):
        self._running = dict.fromkeys(range(processes))
        self._exits: list[ProcessExit] = []
        self._unexplained: set[int] = set()
        self._blaming: set[int] = set()
        self._memory_ran_out: set[int] = set()
        self._latest: dict[int, News] = {}
        self.killed: set[int] = set()
        """Processes that the launcher has killed."""
        self.lost_nodes: dict[int, str] = {}
        """Index of a process -> sentence about its lost node."""

    @property
    def running(self) -> list[int]:
        """The processes that have not ended."""
        return list(self._running)

    @property
    def failed(self) -> bool:
        """Whether a process has failed."""
        return any(ended.code != ExitStatus.DONE for ended in self._exits)

    @property
    def status(self) -> Path | None:
        """The status file of the run, if this machine sees it."""
        names = [news.status for _, news in sorted(self._latest.items()) if news.status]
        path = local_path(names[0]) if names else None
        return path if path is not None and path.exists() else None

    def take(self, i: int, news: News, received: float) -> None:
        """Takes news of a process that were received at this time of the monotonic clock here."""
        self._latest[i] = news
        if news.outcome is None or i not in self._running:
            return
        outcome, offset = news.outcome, received - news.now
        self._end(*(dataclasses.replace(ended, time=ended.time + offset) for ended in outcome.exits))
        self._unexplained |= outcome.unexplained - self.killed
        self._blaming |= outcome.blaming
        self._memory_ran_out |= {i} if outcome.memory_ran_out else set()

    def lose(self, i: int, code: int, text: str, out_of_memory: bool = False) -> None:
        """States that a process has ended with its actor; `text` says why, "" if the launcher has killed it."""
        pid = self._latest[i].pid if i in self._latest else 0
        steps = [news.step for news in self._latest.values() if news.step is not None]  # they train in lockstep
        step = max(steps, default=None)
        self._end(ProcessExit(i, code, time.monotonic(), pid, text, step=step, explanation=text))
        self._unexplained |= {i} if text else set()
        self._memory_ran_out |= {i} if out_of_memory else set()

    def lose_node(self, i: int, text: str) -> None:
        """States that a process is lost with its node."""
        self.lost_nodes.setdefault(i, text)
        self.lose(i, ExitStatus.RETRY, text)

    def in_order(self) -> tuple[list[ProcessExit], str]:
        """Returns how the processes ended, failures first, and why the job ended, "" if it is done."""
        exits = local.in_order(self._exits, self._unexplained, self._blaming)
        return local.explain_first(exits, exits[0].index in self._memory_ran_out)

    def _end(self, *exits: ProcessExit) -> None:
        for ended in exits:
            del self._running[ended.index]
            self._exits.append(ended)
