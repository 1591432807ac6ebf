"""The hang watchdog: a step that takes far too long ends the run with all stacks, a name and exit code 42.

It is a thread, since the main thread may be stuck anywhere: in a collective, in the user's code, in a lock. A main
thread that keeps Python's lock stops this thread as well; the other processes then name its process, as one that does
not answer. The loop only counts steps, since a clock may cost more than a step; the thread notices when they change.
"""

import json
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, NoReturn, TypedDict

from engine.cluster import group, kv_store, shutdown
from engine.cluster.exit_status import ExitStatus
from engine.cluster.kv_store import CoordinationError
from engine.cluster.peer_failure import LostPeer
from engine.cluster.rendezvous import name
from engine.config.errors import ConvoyError
from engine.resilience import stacks, timeouts

_PATIENT = f"{timeouts.PATIENCE:g} times resilience.hang"
_STORING = f"2 times checkpoint.timeout and {timeouts.STORAGE_MARGIN_S:g} s"
_TRAINING = "training"
_MEDIAN_OF = 64  # polls in which results arrived


class Hang(ConvoyError):
    """Nothing moved for longer than a step may take."""

    exit_code = ExitStatus.RETRY


class Activity(NamedTuple):
    """What the main thread does."""

    phase: str
    bound_s: float | None = None  # from one heartbeat to the next; None: no bound; for steps, the watchdog's own
    rule: str = ""  # that the bound follows, as "checkpoint.timeout"


class Position(NamedTuple):
    """Where a process is."""

    phase: str
    bound_s: float | None
    rule: str
    since: float  # monotonic seconds of the latest heartbeat or of the start of the phase
    dispatched: int  # steps
    arrived: int  # steps


class Report(TypedDict):
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
        folder: for the stacks of each process; it is made when it is needed.
        attempt: of the run.
        k: steps of a dispatch.
    """

    def __init__(self, hang_s: float, timeout_s: float, folder: Path, attempt: int, k: int = 1):
        self._hang_s, self._timeout_s, self._folder, self._attempt, self._k = hang_s, timeout_s, folder, attempt, k
        self.dispatched = 0
        """Steps whose program was called. The loop sets it just before the call."""
        self.arrived = 0
        """Steps whose result has arrived. The loop sets it when it has."""
        self._since = time.monotonic()  # of the latest heartbeat, or of the start of the phase
        self._activity = Activity("starting")
        self._seen = (0, 0)  # dispatched and arrived, at the latest poll
        self._from = (0.0, 0)  # where the time of a step begins: the latest poll with an arrival, and the steps by then
        self._steps_s: deque[float] = deque(maxlen=_MEDIAN_OF)  # of one step each
        self._peers: dict[str, tuple[str, float]] = {}  # the latest position of each, and when it was first seen
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    @contextmanager
    def training(self, step: int) -> Iterator[None]:
        """Applies the bound of a step, from the step after `step` on; afterwards the bound of the run's end."""
        self.dispatched = self.arrived = step
        self._enter(Activity(_TRAINING))
        try:
            yield
        finally:
            self._enter(Activity("ending", self._hang_s * timeouts.PATIENCE, _PATIENT))

    @contextmanager
    def storing(self, what: str) -> Iterator[None]:
        """Applies the bound of a save or restore, or two saves; each gives up earlier, at `checkpoint.timeout`."""
        with self._during(Activity(what, 2 * self._timeout_s + timeouts.STORAGE_MARGIN_S, _STORING)):
            yield

    @contextmanager
    def patient(self, what: str) -> Iterator[None]:
        """Applies the bound of something that may take much longer than a step; `heartbeat` restarts it."""
        with self._during(Activity(what, self._hang_s * timeouts.PATIENCE, _PATIENT)):
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
        self._notice()
        self.heartbeat()  # before the change: a poll in between then finds the former activity fresh, and none overdue
        self._from, self._seen = (self._since, self.arrived), (self.dispatched, self.arrived)
        self._activity = activity

    def heartbeat(self) -> None:
        """Restarts the bound: the present activity has made progress."""
        self._since = time.monotonic()

    @property
    def position(self) -> Position:
        """Where the main thread is."""
        return Position(*self._activity, self._since, self.dispatched, self.arrived)

    def poll(self) -> tuple[Position, float | None, str]:
        """Returns where the main thread is by now, its bound in seconds and the rule of that bound."""
        self._notice()
        position = self.position
        return position, *self._bound(position)

    def _notice(self) -> None:
        """Counts a change of `dispatched` or `arrived` as a heartbeat, and keeps the time of a step."""
        now, arrived, seen = time.monotonic(), self.arrived, (self.dispatched, self.arrived)
        if self._activity.phase == _TRAINING and seen != self._seen:
            self._since, self._seen = now, seen
            begin, before = self._from
            if arrived > before:
                self._steps_s.append((now - begin) / (arrived - before))
                self._from = (now, arrived)

    def _bound(self, position: Position) -> tuple[float | None, str]:
        if position.phase != _TRAINING:
            return position.bound_s, position.rule
        if not (steps_s := list(self._steps_s)):
            return self._hang_s * timeouts.PATIENCE, f"{_PATIENT}, for the first step"
        k, median = self._k, statistics.median(steps_s)
        several = f" times {k} in a dispatch" if k > 1 else ""
        rule = f"resilience.hang is {self._hang_s:g} s, the median step {median:.3g} s{several}"
        return max(self._hang_s, timeouts.TIMES_MEDIAN * median * k), rule

    def _watch(self) -> None:
        period = min(timeouts.WATCHDOG_POLL_S, self._hang_s / 10)
        while not self._stop.wait(period):
            with suppress(CoordinationError):  # `peer_failure.py` reports the loss of process 0
                self._check()

    def _check(self) -> None:
        position, bound_s, rule = self.poll()
        waited = time.monotonic() - position.since
        overdue = bound_s is not None and waited > bound_s
        if group.count() > 1:
            published = position._replace(bound_s=bound_s, since=waited)._asdict()
            kv_store.put(f"watchdog/positions/{group.index()}", json.dumps(published))
            if (text := kv_store.try_get("watchdog/hang")) is not None:
                self._end(text)
            overdue = overdue and not self._is_excused()
        if overdue:
            phase = position.phase
            what = "no step has ended" if phase == _TRAINING else f"{phase} has not moved on"
            text = f"{what} for {waited:.1f} s, where {bound_s:.1f} s are allowed ({rule})"
            kv_store.put_first("watchdog/hang", text)
            self._end(kv_store.try_get("watchdog/hang") or text)

    def _is_excused(self) -> bool:
        """Whether a peer does something that may take longer than a step, so that this process rightly waits."""
        now = time.monotonic()
        for index, text in kv_store.entries("watchdog/positions").items():
            if index == str(group.index()):
                continue
            if self._peers.get(index, ("", 0.0))[0] != text:
                self._peers[index] = (text, now)
            peer = Position(**json.loads(text))
            waited = peer.since + now - self._peers[index][1]
            if peer.phase != _TRAINING and (peer.bound_s is None or waited <= peer.bound_s):
                return True
        return False

    def _end(self, text: str) -> NoReturn:
        """Writes this process's stacks, agrees with all on who is behind, and ends the process."""
        position, index = self.position, group.index()
        file = stacks.dump(self._folder / f"attempt-{self._attempt}-process-{index}.txt")
        print(stacks.main_thread(), file=sys.stderr, flush=True)
        mine = Report(
            phase=position.phase, dispatched=position.dispatched, arrived=position.arrived, where=stacks.where()
        )
        try:
            who = group.decide(mine, _who, "the stacks", timeouts.STACKS_S)
        except (LostPeer, CoordinationError):  # the primary itself is stuck with Python's lock, or gone
            who = _who({index: mine}, [0])
        shutdown.end(
            Hang(
                f"{text}. {who} All stacks: {file.parent if file else 'none written'}. "
                "The same command goes on from the newest checkpoint."
            )
        )


def _who(reports: Mapping[int, Report], missing: list[int]) -> str:
    """The sentence about who is behind, and where: who has dispatched least, or does not answer."""
    if missing:
        return f"{name(missing).capitalize()} does not answer: stopped, or stuck with Python's lock."
    steps = {index: (report["dispatched"], report["arrived"]) for index, report in reports.items()}
    least = min(steps.values())
    behind = sorted(index for index, reached in steps.items() if reached == least)
    where = "; ".join(
        f"process {index} has dispatched {steps[index][0]} steps, is {reports[index]['phase']}, at "
        f"{reports[index]['where']}"
        for index in behind
    )
    if len(behind) == len(reports):
        return f"All are at the same point: {where}." if len(reports) > 1 else f"{where}."
    return f"{name(behind).capitalize()} {'is' if len(behind) == 1 else 'are'} behind: {where}."
