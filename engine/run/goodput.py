"""The goodput ledger of a run, `goodput.jsonl`: how many seconds each attempt spent on each kind of work (KINDS).

Each moment counts for exactly one kind, so the sum is the wall time. "down" is the time between attempts. "lost" is the
time of steps that are repeated after a restart or rollback, and of a killed attempt after its last entry. Entries are
never changed: a negative "step" entry and a positive "lost" entry move steps to "lost".
"""

import functools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NotRequired, TypedDict

from engine.base import json_text
from engine.base.errors import RunError
from engine.base.host import boot_id, start_ticks, usable_cores
from engine.cluster.parent import command_pid
from engine.run.atomic import cannot_write
from engine.run.log import logger

SLOW = "slow process"  # kind of entries that estimate how long the run has waited for its slowest process
KINDS = ("init", "restore", "compile", "step", "data wait", "save stall", "evaluation", "lost", "down")
_LARGEST = 1e15  # largest number in a valid entry
NOTHING_READ: Mapping[str, float] = {}
EVERY_S = 1.0  # seconds between two writes of entries while the loop runs steps
LEAST_S = 1e-3  # shorter times are not written, but added to the next entry of their kind


class Entry(TypedDict):
    """A line of the file: seconds of one kind in one attempt. The sum of the entries is the total."""

    kind: str
    seconds: float
    steps: int  # number of steps in these seconds; 0 for kinds other than "step" and "lost"
    attempt: int
    step: int  # last dispatched step; in a move to "lost", the step from which the loop continues
    time: float  # unix seconds
    clock: float  # monotonic seconds
    boot: str  # id of the boot that `clock` counts from
    pid: int  # process id of the writer
    wall: NotRequired[bool]  # seconds are from the wall clock: monotonic clocks of two boots are not comparable
    process: NotRequired[str]  # with SLOW: "process 2 (host a)"
    cause: NotRequired[str]  # with SLOW: what that process waits for
    reading: NotRequired[dict[str, float]]  # with "step": stage of reading -> seconds, added up over the readers
    readers: NotRequired[int]  # with `reading`: threads or worker processes that read
    cores: NotRequired[int]  # with `reading`: cores that the process may use
    closed: NotRequired[bool]  # whether this is the last entry of an attempt that ended without a kill


class Stopwatch:
    """Measures the time of one attempt, from its start to `close`. Not thread-safe.

    Args:
        path: the file, in the primary; None in the other processes, which write nothing.
        attempt: number of the attempt.
        began: monotonic seconds at which the attempt began; None for now. Before it, the run was "down".
    """

    def __init__(self, path: Path | None = None, attempt: int = 0, began: float | None = None):
        self._path, self._attempt = path, attempt
        self._submit: Callable[[Callable[[], None]], None] = lambda write: write()
        self._write_error_reported = False
        self._seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        self._step = self._written_step = 0  # last dispatched step: now, and in the last entry
        self._wait_s = 0.0
        self._reading = _Reading()
        now = time.monotonic()
        last = _last(read(path)) if path is not None else None
        self._since = self._flushed = now if began is None else began
        self._kind = "init"
        if last is not None:
            down, wall = _gap(last, self._since, now)
            if not wall:  # this process may have started before the last entry of the previous attempt
                self._since = max(self._since, last["clock"])
            entry = self._entry("down", down)
            if wall:
                entry["wall"] = True
            self._write([entry])

    def during(self, kind: str) -> "_During":
        """Returns a context manager that counts the time in its block for `kind`. Takes about half a microsecond."""
        return _During(self._switch, kind)

    @contextmanager
    def written_by(self, submit: Callable[[Callable[[], None]], None]) -> Iterator[None]:
        """Writes entries through `submit`, in another thread, during the block: a slow disk must not block the loop."""
        before, self._submit = self._submit, submit
        try:
            yield
        finally:
            self._submit = before

    def begin(self, step: int) -> None:
        """Starts to count time for "step". Moves steps after `step` to "lost", in all attempts: they are repeated."""
        self.flush()
        if (path := self._path) is not None:
            self._submit(lambda: self._append_or_warn(path, self._move_to_lost(path, step)))
        self._step = self._written_step = step
        self._write([self._entry("step", 0.0)])  # an entry of this attempt and process for `record_death`
        self._wait_s = 0.0
        self._reading.restart()
        self._switch("step")

    def reached(self, step: int, wait_s: float, reading: Mapping[str, float] = NOTHING_READ, readers: int = 0) -> None:
        """Records the last dispatched step, and how data was read since `begin`.

        Args:
            step: the last dispatched step.
            wait_s: total seconds that the loop has waited for data.
            reading: stage of reading -> total seconds, added up over the readers.
            readers: number of readers.
        """
        self._reading.reached(reading, readers)
        waited, self._wait_s = wait_s - self._wait_s, wait_s
        self._seconds["data wait"] += waited
        self._seconds["step"] -= waited
        self._step = step
        if not 0 <= time.monotonic() - self._flushed <= EVERY_S:
            self.flush()

    def waited_for(self, process: str, cause: str, seconds: float) -> None:
        """Writes how long the run has waited for its slowest process since the last call; part of the step time."""
        entry = self._entry(SLOW, seconds)
        entry["process"], entry["cause"] = process, cause
        self._write([entry])

    def flush(self, closed: bool = False) -> None:
        """Writes the seconds since the last call, one entry per kind. `closed` marks the last entry of an attempt."""
        self._flushed = time.monotonic()
        self._switch(self._kind)
        shortest = 0.0 if closed else LEAST_S
        kinds = [kind for kind, s in self._seconds.items() if abs(s) > shortest or kind == self._kind]
        if self._step != self._written_step and "step" not in kinds:
            kinds.append("step")
        entries = [self._entry(kind, self._seconds[kind]) for kind in kinds]
        for entry in entries:
            self._seconds[entry["kind"]] = 0.0
            if entry["kind"] == "step":
                entry["steps"], self._written_step = self._step - self._written_step, self._step
                self._reading.move_to(entry)
        if closed:
            entries[-1]["closed"] = True
        self._write(entries)

    def close(self) -> None:
        """Ends the attempt: writes its last entry. A second call does nothing."""
        self.flush(closed=True)
        self._path = None

    def _switch(self, kind: str) -> str:
        """Counts time for this kind from now on; returns the previous kind."""
        now, previous = time.monotonic(), self._kind
        # libfaketime, and some hypervisors after a migration, set even this clock back.
        self._seconds[previous] += max(0.0, now - self._since)
        self._since, self._kind = now, kind
        return previous

    def _entry(self, kind: str, seconds: float, steps: int = 0) -> Entry:
        return _entry(kind, seconds, steps, self._attempt, self._step, self._since)

    def _move_to_lost(self, path: Path, step: int) -> list[Entry]:
        """Returns pairs of entries that move the steps after `step` from "step" to "lost"."""
        entries = []
        for attempt, (seconds, steps) in _steps_after(read(path), step).items():
            entries.append(_entry("step", -seconds, -steps, attempt, step, self._since))
            entries.append(_entry("lost", seconds, steps, attempt, step, self._since))
        return entries

    def _write(self, entries: Sequence[Entry]) -> None:
        if (path := self._path) is not None:
            self._submit(lambda: self._append_or_warn(path, entries))

    def _append_or_warn(self, path: Path, entries: Sequence[Entry]) -> None:
        try:
            if entries:
                append(path, entries)
        except OSError as error:  # the run continues without these entries
            if not self._write_error_reported:
                self._write_error_reported = True
                logger.warning("%s", cannot_write(path, error))


class _Reading:
    """Seconds of each stage of reading that are in no entry yet."""

    def __init__(self) -> None:
        self._total: dict[str, float] = {}  # kind -> seconds since `restart`
        self._written: dict[str, float] = {}  # part of it that is in an entry
        self._readers = 0

    def restart(self) -> None:
        """Starts the totals from 0, as a new feed does."""
        self._total, self._written = {}, {}

    def reached(self, total: Mapping[str, float], readers: int) -> None:
        """Records the totals so far."""
        if total:
            self._total, self._readers = dict(total), readers

    def move_to(self, entry: Entry) -> None:
        """Adds the seconds since the last call to an entry."""
        new = {name: round(seconds - self._written.get(name, 0.0), 6) for name, seconds in self._total.items()}
        if any(new.values()):
            entry["reading"], entry["readers"], entry["cores"] = new, self._readers, usable_cores()
        self._written = self._total


class _During:
    """Context manager that counts time for one kind."""

    def __init__(self, switch: Callable[[str], str], kind: str):
        self._switch, self._kind = switch, kind

    def __enter__(self) -> None:
        self._before = self._switch(self._kind)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._switch(self._before)


def record_death(path: Path, pids: Iterable[int], step: int | None) -> None:
    """Adds the time since the last entry of a killed attempt to "lost". Called by the supervisor.

    Args:
        path: the file.
        pids: pids of the processes of the attempt, all of which have just ended.
        step: last dispatched step of the primary; None if unknown.
    """
    entries, now = read(path), time.monotonic()
    last = _last(entries)
    if last is None or last["pid"] not in pids or last["boot"] != _boot() or "closed" in last:
        return
    # The last entry may be of an earlier attempt, whose steps were moved to "lost".
    steps, attempt = max(0, (step or 0) - last["step"]), max(entry["attempt"] for entry in entries)
    with suppress(OSError):  # the run continues without this entry
        append(path, [_entry("lost", max(0.0, now - last["clock"]), steps, attempt, last["step"], now)])


def append(path: Path, entries: Sequence[Entry]) -> None:
    """Appends entries to the file. Starts a new line first if a killed writer has left an incomplete line."""
    with open(path, "ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        line_end = b"\n" if size and file.read(1) != b"\n" else b""
        file.write(line_end + "".join(json.dumps(entry) + "\n" for entry in entries).encode())


def read(path: Path, kinds: Sequence[str] = KINDS) -> list[Entry]:
    """Returns the entries of these kinds, the oldest first, as `read_all`."""
    return [entry for entry in read_all(path).values if entry["kind"] in kinds]


def read_all(path: Path) -> json_text.Lines:
    """Returns all entries, the oldest first, and which lines are damaged; nothing if the file is missing.

    Raises:
        RunError: the file cannot be read.
    """
    try:
        return json_text.read_lines(path, _SHAPE, _problem)
    except FileNotFoundError:
        return json_text.Lines([], {})
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or error}). Move the file away.") from error


# The fields after `step` are missing in old files.
_SHAPE = {
    "kind": frozenset((*KINDS, SLOW)), "seconds": float, "steps": int, "attempt": int, "step?": int, "time?": float,
    "clock?": float, "boot?": str, "pid?": int, "wall?": bool, "process?": str, "cause?": str,
    "reading?": {str: float}, "readers?": int, "cores?": int, "closed?": bool,
}  # fmt: skip


def _problem(entry: Mapping[str, Any]) -> str:
    """Returns what is wrong with the numbers of an entry; "" for one that this file has written."""
    for name, value in {**entry, **entry.get("reading", {})}.items():
        if isinstance(value, int | float) and not abs(value) < _LARGEST:  # also NaN
            return f"{name}: found {value}, expected less than {_LARGEST:g}"
    smallest = min(entry.get("readers", 1), entry.get("cores", 1))
    return "" if smallest > 0 else f"readers or cores: found {smallest}, expected more than 0"


@dataclass
class Time:
    """Seconds and steps of one kind."""

    seconds: float = 0.0
    steps: int = 0


def sums(entries: Iterable[Entry]) -> dict[int, dict[str, Time]]:
    """Returns attempt -> kind -> sum of its entries; every attempt has every kind."""
    attempts: dict[int, dict[str, Time]] = {}
    for entry in entries:
        kinds = attempts.setdefault(entry["attempt"], {kind: Time() for kind in KINDS})
        kinds[entry["kind"]].seconds += entry["seconds"]
        kinds[entry["kind"]].steps += entry["steps"]
    return dict(sorted(attempts.items()))


def process_start() -> float:
    """Returns the monotonic seconds at which this command was started; the current time if unknown."""
    now, ticks = time.monotonic(), start_ticks(command_pid())
    try:
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return now
    return now - max(0.0, uptime - int(ticks) / os.sysconf("SC_CLK_TCK")) if ticks else now


def _steps_after(entries: Iterable[Entry], step: int) -> dict[int, tuple[float, int]]:
    """Returns attempt -> (seconds, number) of its steps after `step`, without those that are "lost" already."""
    kept: dict[int, list[tuple[int, int, float]]] = {}  # attempt -> spans (step before, last step, seconds) not lost
    for entry in entries:
        if entry["kind"] != "step":
            continue
        spans = kept.setdefault(entry["attempt"], [])
        if entry["steps"] < 0:
            kept[entry["attempt"]] = [_split(span, entry["step"])[0] for span in spans]
        else:
            spans.append((entry["step"] - entry["steps"], entry["step"], entry["seconds"]))
    lost = {}
    for attempt, spans in kept.items():
        later = [_split(span, step)[1] for span in spans]
        steps = sum(last - first for first, last, _ in later)
        if steps:
            lost[attempt] = (sum(seconds for _, _, seconds in later), steps)
    return lost


def _split(span: tuple[int, int, float], step: int) -> tuple[tuple[int, int, float], tuple[int, int, float]]:
    """Splits a span (step before, last step, seconds) at a step. Divides the seconds in proportion to the steps."""
    first, last, seconds = span
    at = min(max(step, first), last)
    before = seconds * (at - first) / (last - first) if last > first else seconds * (step >= last)
    return (first, at, before), (at, last, seconds - before)


def _last(entries: Sequence[Entry]) -> Entry | None:
    """Returns the last entry that has the field `clock`, or None."""
    return next((entry for entry in reversed(entries) if "clock" in entry), None)


def _gap(last: Entry, began: float, now: float) -> tuple[float, bool]:
    """Returns the seconds from the last entry to this attempt's start, and whether they are from the wall clock."""
    if last["boot"] and last["boot"] == _boot() and last["clock"] <= now:
        return max(0.0, began - last["clock"]), False
    return max(0.0, time.time() - (now - began) - last["time"]), True


def _entry(kind: str, seconds: float, steps: int, attempt: int, step: int, clock: float) -> Entry:
    return Entry(
        kind=kind,
        seconds=seconds,
        steps=steps,
        attempt=attempt,
        step=step,
        time=time.time(),
        clock=clock,
        boot=_boot(),
        pid=os.getpid(),
    )


@functools.cache
def _boot() -> str:
    """Returns the id of the boot that the monotonic clock counts from; "" if unknown."""
    return boot_id()[:8]
