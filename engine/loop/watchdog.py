"""The hang watchdog: ends a run with all stacks and exit code 42 when a step takes far too long.

It is a thread, since the main thread may be stuck anywhere: in a collective, in the user's code, in a lock. A main
thread that holds the GIL blocks this thread too; the other processes then report that its process does not answer. The
loop only counts steps, since reading a clock may cost more than a step; the thread polls the counts.
"""

import json
import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, NoReturn, TypedDict

from engine.base.errors import ConvoyError
from engine.cluster import group, kv_store, output, shutdown
from engine.cluster.exit_status import ExitStatus
from engine.cluster.identity import LISTED, process_list
from engine.cluster.kv_store import CoordinationError
from engine.cluster.peer_failure import LostPeer
from engine.loop import stacks, timeouts

_PATIENT = f"{timeouts.PATIENCE:g} times resilience.hang"
_STORING = f"2 times checkpoint.timeout and {timeouts.STORAGE_MARGIN_S:g} s"
_TRAINING = "training"
_MEDIAN_OF = 64  # latest polls in which results arrived


class Hang(ConvoyError):
    """The run made no progress for longer than its timeout."""

    exit_code = ExitStatus.RETRY


class Activity(NamedTuple):
    """What the main thread does."""

    phase: str
    timeout_s: float | None = None  # between two heartbeats; None: unlimited, or for steps the multiple of their median
    rule: str = ""  # how the timeout is derived, such as "checkpoint.timeout"


class ProcessProgress(NamedTuple):
    """How far a process is."""

    phase: str
    timeout_s: float | None
    rule: str
    since: float  # monotonic seconds of the latest heartbeat or of the start of the phase
    dispatched: int  # steps
    arrived: int  # steps


class HangReport(TypedDict):
    """What a process reports about itself when the run hangs."""

    phase: str
    dispatched: int
    arrived: int
    where: str


class Watchdog:
    """Watches one attempt. A context manager: the thread runs while it is open.

    Args:
        hang_s: `resilience.hang` in seconds.
        timeout_s: `checkpoint.timeout` in seconds.
        folder: for the stacks of each process; created when needed.
        attempt: number of the attempt.
        k: steps of a dispatch.
    """

    def __init__(self, hang_s: float, timeout_s: float, folder: Path, attempt: int, k: int = 1):
        self._hang_s, self._timeout_s, self._folder, self._attempt, self._k = hang_s, timeout_s, folder, attempt, k
        self.dispatched = 0
        """Steps whose program was called. The loop sets it just before the call."""
        self.arrived = 0
        """Steps whose result has arrived. The loop sets it."""
        self._since = time.monotonic()  # time of the latest heartbeat or of the start of the phase
        self._activity = Activity("starting")
        self._seen = (0, 0)  # dispatched and arrived, at the latest poll
        self._from = (0.0, 0)  # start of the present step: time of the latest poll with a result, steps by then
        self._steps_s: deque[float] = deque(maxlen=_MEDIAN_OF)  # seconds per step
        self._poll_s = min(timeouts.WATCHDOG_POLL_S, hang_s / 10)
        self._publish_at = 0.0  # when this process publishes its progress again
        self._peers: dict[str, tuple[str, float]] = {}  # the latest progress of each, and when it was first seen
        # While this process is overdue: the latest answer of process 0, and when it was first seen.
        self._asked: tuple[str | None, float] | None = None
        self._stop = threading.Event()
        self._thread = shutdown.RunThread(self._watch, "watchdog")

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    @contextmanager
    def training(self, step: int) -> Iterator[None]:
        """Applies the timeout of a step, starting after `step`; afterwards the timeout of the end of the run."""
        self.dispatched = self.arrived = step
        self._enter(Activity(_TRAINING))
        try:
            yield
        finally:
            self._enter(Activity("ending", self._hang_s * timeouts.PATIENCE, _PATIENT))

    @contextmanager
    def storing(self, what: str) -> Iterator[None]:
        """Applies the timeout of a save or restore, or two saves. Each fails earlier, after `checkpoint.timeout`."""
        with self._during(Activity(what, 2 * self._timeout_s + timeouts.STORAGE_MARGIN_S, _STORING)):
            yield

    @contextmanager
    def patient(self, what: str) -> Iterator[None]:
        """Applies the timeout of a phase that may take much longer than a step; `heartbeat` restarts it."""
        with self._during(Activity(what, self._hang_s * timeouts.PATIENCE, _PATIENT)):
            yield

    @contextmanager
    def unlimited(self, what: str) -> Iterator[None]:
        """Applies no timeout: only code outside the engine knows how long this takes."""
        with self._during(Activity(what)):
            yield

    @contextmanager
    def _during(self, activity: Activity) -> Iterator[None]:
        former = self._activity
        self._enter(activity)
        try:
            yield
        finally:
            self._enter(former)

    def _enter(self, activity: Activity) -> None:
        self._count_steps()
        self.heartbeat()  # before the change, so that a poll in between does not find the former activity overdue
        self._from, self._seen = (self._since, self.arrived), (self.dispatched, self.arrived)
        self._activity = activity

    def heartbeat(self) -> None:
        """Restarts the timeout: the present activity has made progress."""
        self._since = time.monotonic()

    @property
    def progress(self) -> ProcessProgress:
        """Progress of the main thread."""
        return ProcessProgress(*self._activity, self._since, self.dispatched, self.arrived)

    def poll(self) -> tuple[ProcessProgress, float | None, str]:
        """Returns the progress of the main thread, its timeout in seconds and the rule of that timeout."""
        self._count_steps()
        progress = self.progress
        return progress, *self._timeout(progress)

    def _count_steps(self) -> None:
        """Counts a change of `dispatched` or `arrived` as a heartbeat, and records the seconds per step."""
        now, arrived, seen = time.monotonic(), self.arrived, (self.dispatched, self.arrived)
        if self._activity.phase == _TRAINING and seen != self._seen:
            self._since, self._seen = now, seen
            begin, before = self._from
            if arrived > before:
                self._steps_s.append((now - begin) / (arrived - before))
                self._from = (now, arrived)

    def _timeout(self, progress: ProcessProgress) -> tuple[float | None, str]:
        if progress.phase != _TRAINING:
            return progress.timeout_s, progress.rule
        if not (steps_s := list(self._steps_s)):
            return self._hang_s * timeouts.PATIENCE, f"{_PATIENT}, for the first step"
        k, median = self._k, statistics.median(steps_s)
        several = f" times {k} in a dispatch" if k > 1 else ""
        rule = f"resilience.hang is {self._hang_s:g} s, the median step {median:.3g} s{several}"
        return max(self._hang_s, timeouts.TIMES_MEDIAN * median * k), rule

    def _watch(self) -> None:
        while not self._stop.wait(kv_store.poll_period(self._poll_s, timeouts.WATCHDOG_LONGEST_POLL_S)):
            with suppress(CoordinationError):  # `peer_failure.py` reports the loss of process 0
                self._check()

    def _check(self) -> None:
        progress, timeout_s, rule = self.poll()
        waited = time.monotonic() - progress.since
        overdue = ""
        if timeout_s is not None and waited > timeout_s:
            what = "no step has finished" if progress.phase == _TRAINING else f"{progress.phase} has made no progress"
            overdue = f"{what} for {waited:.1f} s, where {timeout_s:.1f} s are allowed ({rule})"
        if group.count() > 1:
            self._publish(progress._replace(timeout_s=timeout_s, since=waited))
            if (text := kv_store.try_get("watchdog/hang")) is not None:
                self._end(text)
            overdue = self._agree(overdue)
        if overdue:
            kv_store.put_first("watchdog/hang", overdue)
            self._end(kv_store.try_get("watchdog/hang") or overdue)

    def _publish(self, progress: ProcessProgress) -> None:
        """Publishes the progress of this process, at each check, or more rarely in a large run."""
        if time.monotonic() >= self._publish_at:
            kv_store.put(f"watchdog/progress/{group.index()}", json.dumps(progress._asdict()))
            self._publish_at = time.monotonic() + kv_store.poll_period(self._poll_s) - self._poll_s / 2

    def _agree(self, overdue: str) -> str:
        """Returns `overdue`, the reason why this process is overdue, if the run hangs; otherwise an empty text.

        Only process 0 reads the progress of each process. A process that is overdue asks it whether another process is
        in a longer phase. Without an answer, it decides alone.
        """
        if group.is_primary():
            if not overdue and kv_store.try_get("watchdog/overdue") is None:
                return ""
            excused = self._is_excused()
            kv_store.delete("watchdog/overdue")
            kv_store.put("watchdog/answer", json.dumps([time.monotonic(), excused]))
            return "" if excused else overdue
        if not overdue:
            self._asked = None
            return ""
        kv_store.put("watchdog/overdue", "")
        answer, now = kv_store.try_get("watchdog/answer"), time.monotonic()
        if self._asked is None:
            self._asked = (answer, now)  # an older answer does not count
        elif answer is not None and answer != self._asked[0]:
            self._asked = (answer, now)
            if not json.loads(answer)[1]:
                return overdue
        longest = timeouts.UNANSWERED_POLLS * kv_store.poll_period(self._poll_s, timeouts.WATCHDOG_LONGEST_POLL_S)
        return overdue if now - self._asked[1] > longest else ""

    def _is_excused(self) -> bool:
        """Whether a process is in a phase that may take longer than a step, so that waiting for it is no hang."""
        now = time.monotonic()
        for index, text in kv_store.entries("watchdog/progress").items():
            if self._peers.get(index, ("", 0.0))[0] != text:
                self._peers[index] = (text, now)
            peer = ProcessProgress(**json.loads(text))
            waited = peer.since + now - self._peers[index][1]
            if peer.phase != _TRAINING and (peer.timeout_s is None or waited <= peer.timeout_s):
                return True
        return False

    def _end(self, text: str) -> NoReturn:
        """Writes this process's stacks, determines which processes are behind, and ends the process."""
        progress, index = self.progress, group.index()
        file = stacks.dump(self._folder / f"attempt-{self._attempt}-process-{index}.txt")
        output.show(stacks.main_thread())
        mine = HangReport(
            phase=progress.phase, dispatched=progress.dispatched, arrived=progress.arrived, where=stacks.where()
        )
        try:
            who = group.decide(mine, _behind, "the stacks", timeouts.STACKS_S)
        except (LostPeer, CoordinationError):  # the primary itself is gone, or its main thread holds the GIL
            who = _behind({index: mine}, [0])
        shutdown.end(
            Hang(
                f"{text}. {who} All stacks: {file.parent if file else 'not written'}. "
                "The same command resumes from the newest checkpoint."
            )
        )


def _behind(reports: Mapping[int, HangReport], missing: list[int]) -> str:
    """Returns a sentence with the processes that are behind: with the fewest dispatched steps, or without an answer."""
    if missing:
        return f"{process_list(missing).capitalize()} does not answer: stopped, or a thread holds the GIL."
    steps = {index: (report["dispatched"], report["arrived"]) for index, report in reports.items()}
    least = min(steps.values())
    behind = sorted(index for index, reached in steps.items() if reached == least)
    where = "; ".join(
        f"process {index} has dispatched {steps[index][0]} steps, is {reports[index]['phase']}, at "
        f"{reports[index]['where']}"
        for index in behind[:LISTED]
    )
    if len(behind) == len(reports):
        return f"All are at the same point: {where}." if len(reports) > 1 else f"{where}."
    return f"{process_list(behind).capitalize()} {'is' if len(behind) == 1 else 'are'} behind: {where}."
