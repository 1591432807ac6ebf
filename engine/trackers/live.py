"""A tracker of a run in progress: a thread that reads `metrics.jsonl` and sends its new rows.

The file is the queue, so an unreachable tracker costs no memory and loses no row: a later turn, a resumed run, or
`convoy runs push` sends it. Only images and other values that a line does not hold wait in memory, up to a bound.
"""

import shlex
import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from engine.base.errors import EngineEnd
from engine.base.user_errors import describe
from engine.cluster import shutdown
from engine.cluster.exit_status import ExitStatus, status_of
from engine.cluster.shutdown import RunThread
from engine.metrics.results import Bins, Curve, Image, Result
from engine.observe.writer import Row
from engine.run.directory import RunDirectory
from engine.run.lease import LeaseLost
from engine.run.log import logger
from engine.trackers.addresses import without_password
from engine.trackers.entries import Key, Lines, key_of, rich_values
from engine.trackers.sender import Sender

if TYPE_CHECKING:
    from engine.trackers.tracker import Tracker

SEND_S = 5.0  # between two turns: many rows at once cost a tracker little more than one
MAX_SHARE = 0.01  # of the time of a core that a tracker may take, since it takes it from the training loop
RETRY_S = 60.0  # longest time between two turns of a tracker that fails
SILENCE_S = 60.0  # a turn that takes longer is reported
FORCED_S = 2.0  # wait for the end of the thread if another thread ends the process
MAX_WAITING = 64 << 20  # bytes of values that wait in memory


class Live:
    """Sends the rows of an attempt in a thread, whatever the tracker does.

    Args:
        tracker: the tracker.
        directory: the run directory.
    """

    _forced_until: float | None = None

    def __init__(self, tracker: "Tracker", directory: RunDirectory):
        self._tracker, self._directory = tracker, directory
        self._sender = Sender(tracker, directory, self._rich)
        self._waiting: dict[Key, dict[str, Result]] = {}
        self._bytes, self._lock = 0, threading.Lock()
        self._lost = 0  # images and other values for which memory had no space
        self._turn_began: float | None = None
        self._warned = self._stopped = False
        self._problem = ""
        self._end: tuple[str, str] | None = None  # state and reason
        self._ending = threading.Event()
        self._thread = RunThread(self._run, f"convoy-{tracker.kind}", otherwise="The tracker receives no more rows.")
        self._thread.start()
        shutdown.add_exit_callback(self._end_forced)

    def add(self, row: Row) -> None:
        """Keeps the values of a row that its line does not hold."""
        rich = rich_values(row)
        size = sum(map(_size, rich.values()))
        if rich and self._bytes + size > MAX_WAITING:
            self._lost += _images(rich)
        elif rich:
            with self._lock:
                self._waiting[key_of(row)] = rich
                self._bytes += size
        began = self._turn_began
        if began is not None and time.monotonic() > began + SILENCE_S:
            self._warn(f"has not answered for {SILENCE_S:g} seconds")

    def end(self, error: BaseException | None) -> None:
        """Makes the thread send the rest and end."""
        self._end = _verdict(error)
        self._ending.set()

    def join(self, deadline: float) -> None:
        """Waits for the end of the thread until a monotonic time, and reports what was not sent."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        shutdown.remove_exit_callback(self._end_forced)
        with self._lock:
            images = self._lost + sum(map(_images, self._waiting.values()))
        rows = self._sender.unsent()
        self._warned = True  # what happens from here on is part of the sentence below
        if self._stopped or not (rows or images or self._thread.is_alive() or self._problem):
            return
        flags = [f"--{name}={value}" for name, value in self._tracker.flags.items()]
        reason = self._problem.rstrip(".") or (
            "it has not answered in time" if self._thread.is_alive() else "no memory"
        )
        logger.warning(
            f"{self._name}: {rows} rows of metrics and {images} images were not sent ({reason}). Send the rows with: "
            + shlex.join(["convoy", "runs", "push", str(self._directory), f"--to={self._tracker.kind}", *flags])
        )

    @property
    def _name(self) -> str:
        return f"tracker {self._tracker.kind} ({self._tracker.destination})"

    def _run(self) -> None:
        """The thread. No error leaves it: a package may raise what it likes, SystemExit included."""
        failures, repeats = 0, False
        while not self._stopped:
            ending, used = self._ending.is_set(), time.thread_time()
            try:
                self._turn_began = time.monotonic()
                self._sender.send(self._sent)
                if ending and self._end is not None:
                    self._sender.finish(*self._end)
                failures, self._problem = 0, ""
            except LeaseLost:  # the run belongs to another process, which continues it
                self._stopped = True
            except BaseException as error:
                failures += 1
                self._problem = without_password(describe(error).splitlines()[0])
                self._warn(f"cannot be written: {self._problem.rstrip('.')}")
            finally:
                self._turn_began = None
            if ending:
                return
            pause = (time.thread_time() - used) / MAX_SHARE if repeats else 0.0  # the first turn imports the package
            self._ending.wait(min(RETRY_S, max(SEND_S, pause) * 2 ** min(failures, 8)))
            repeats = True

    def _warn(self, problem: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(f"{self._name} {problem}. Training continues; rows stay in metrics.jsonl until it works.")

    def _rich(self, key: Key) -> dict[str, Result] | None:
        return self._waiting.get(key)

    def _sent(self, lines: Lines) -> None:
        for entry in lines.entries:
            with self._lock:
                rich = self._waiting.pop((entry.step, entry.time), {})
                self._bytes -= sum(map(_size, rich.values()))

    def _end_forced(self, error: BaseException) -> None:
        self.end(error)
        if Live._forced_until is None:  # all trackers share the wait, since the callbacks of a process have 8 seconds
            Live._forced_until = time.monotonic() + FORCED_S
        self._thread.join(max(0.0, Live._forced_until - time.monotonic()))


def _verdict(error: BaseException | None) -> tuple[str, str]:
    """Returns how an attempt has ended, as its status says it, and why."""
    if error is None:
        return "done", ""
    if isinstance(error, EngineEnd):
        return error.state, str(error)
    interrupted = isinstance(error, GeneratorExit) or status_of(error) == ExitStatus.INTERRUPTED
    return "interrupted" if interrupted else "failed", describe(error)


def _images(rich: dict[str, Result]) -> int:
    return sum(isinstance(value, Image) for value in rich.values())


def _size(value: Result) -> int:
    """Returns about how many bytes a value has; 4096 for a table, which has bounded rows."""
    if isinstance(value, Image):
        return len(value.pixels) if isinstance(value.pixels, bytes) else value.pixels.nbytes
    if isinstance(value, Curve | Bins):
        return sum(np.asarray(part).nbytes for part in vars(value).values() if not isinstance(part, str))
    return getattr(value, "nbytes", 4096)
