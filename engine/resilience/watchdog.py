"""The hang watchdog: a step that takes far too long ends the run with everybody's stacks, a name and exit code 42.

Owns: the bound of a step and of each other phase, the thread that looks, agreement of all processes that the run hangs,
and the sentence that names who is behind. Does not own: what a stack looks like (`stacks.py`), or starting again.

Terms. *Beat*: a step's result has arrived, or its program is called. *Bound*: seconds from one beat to the next, the
greater of `resilience.hang` and 5 times the median step so far; with K steps a dispatch K times the median. *Phase*:
what else the main thread does, with a bound of its own or none. *Behind*: the process that has dispatched least, or
does not answer.

It is a thread, since the main one may be stuck anywhere: in a collective, in the user's code, in a lock. A main thread
that keeps Python's lock stops this one as well; then the other processes name it, as one that does not answer. A step
may be shorter than what it costs to look at a clock, so the loop only counts, and the thread sees when it last did.
"""

import json
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

from engine.cluster import kv_store, processes, shutdown
from engine.cluster.exit_status import ExitStatus
from engine.cluster.kv_store import CoordinationError
from engine.cluster.rendezvous import name
from engine.config.errors import ConvoyError
from engine.config.schema import Config
from engine.resilience import stacks
from engine.run.directory import RunDirectory

TIMES_MEDIAN = 5.0
PATIENCE = 10.0  # times `resilience.hang`: for the first step, a batch of an evaluation, a hook, and the end
MARGIN_S = 60.0  # beyond twice `checkpoint.timeout`, at which a save or restore itself is given up
_PATIENT = f"{PATIENCE:g} times resilience.hang"
_STORING = f"2 times checkpoint.timeout and {MARGIN_S:g} s"
_TRAINING = "training"
_LOOK_S = 1.0  # at the most, between two looks
_COLLECT_S = 5.0  # for the stacks of all processes
_MEDIAN_OF = 64  # looks in which steps arrived

Doing = tuple[str, float | None, str]
"""A phase: its name, its bound in seconds (None: none) and the rule of which that comes."""


class Hang(ConvoyError):
    """Nothing moved for longer than a step may take."""

    exit_code = ExitStatus.RETRY


class Place(NamedTuple):
    """Where a process is."""

    phase: str = "starting"
    bound_s: float | None = None  # None: as long as it takes; of a step, the watchdog's own counts
    rule: str = ""  # of which the bound comes, as "checkpoint.timeout"
    since: float = 0.0  # monotonic seconds of the latest beat or of the phase's begin
    dispatched: int = 0  # steps
    arrived: int = 0  # steps


class Watchdog:
    """Looks after one attempt. A context manager: the thread lives while it is open.

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
        """Steps whose program was called; to be set just before the call."""
        self.arrived = 0
        """Steps whose result is there; to be set when it is."""
        self._since = time.monotonic()  # of the latest beat that was seen, or of the phase's begin
        self._doing: Doing = ("starting", None, "")
        self._seen = (0, 0)  # dispatched and arrived, at the latest look
        self._from = (0.0, 0)  # when a step's time begins: the latest look with an arrival, and what had arrived
        self._phases: dict[str, Phase] = {}
        self._steps_s: deque[float] = deque(maxlen=_MEDIAN_OF)  # of one step each
        self._peers: dict[str, tuple[str, float]] = {}  # what a peer told, and when that was first seen
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def training(self, step: int) -> "Phase":
        """Steps follow one another while it is open, from the one after `step` on; what comes after is the end."""
        self.dispatched = self.arrived = step
        ending = ("ending", self._hang_s * PATIENCE, _PATIENT)
        return Phase(self, (_TRAINING, None, ""), ending)

    def storing(self, what: str) -> "Phase":
        """A save or restore, or two saves; each has been given up at `checkpoint.timeout`, before this bound."""
        return self._phase(what, 2 * self._timeout_s + MARGIN_S, _STORING)

    def patient(self, what: str) -> "Phase":
        """Something that may take much longer than a step; `beat` begins its bound anew."""
        return self._phase(what, self._hang_s * PATIENCE, _PATIENT)

    def _phase(self, what: str, bound_s: float, rule: str) -> "Phase":
        """The phase of a name, which is made once, since the loop enters it time and again."""
        if what not in self._phases:
            self._phases[what] = Phase(self, (what, bound_s, rule))
        return self._phases[what]

    @property
    def doing(self) -> Doing:
        """What the main thread does."""
        return self._doing

    @property
    def place(self) -> Place:
        """Where the main thread is."""
        return Place(*self._doing, self._since, self.dispatched, self.arrived)

    def enter(self, doing: Doing) -> None:
        """The main thread does something else from now on."""
        self._see()
        self.beat()  # before the phase changes: a look in between then finds the old one fresh, and none overdue
        self._from, self._seen = (self._since, self.arrived), (self.dispatched, self.arrived)
        self._doing = doing

    def beat(self) -> None:
        """Something has moved in this phase."""
        self._since = time.monotonic()

    def look(self) -> tuple[Place, tuple[float | None, str]]:
        """Returns where the main thread is by now, and the bound and its rule."""
        self._see()
        place = self.place
        return place, self._bound_of(place)

    def _see(self) -> None:
        """Takes in what was dispatched and has arrived since it was last looked at."""
        now, arrived, seen = time.monotonic(), self.arrived, (self.dispatched, self.arrived)
        if self._doing[0] == _TRAINING and seen != self._seen:
            self._since, self._seen = now, seen
            begin, before = self._from
            if arrived > before:
                self._steps_s.append((now - begin) / (arrived - before))
                self._from = (now, arrived)

    def bound(self) -> tuple[float | None, str]:
        """Returns the seconds that the present phase may take until its next beat, and the rule that says so."""
        return self._bound_of(self.place)

    def _bound_of(self, place: Place) -> tuple[float | None, str]:
        if place.phase != _TRAINING:
            return place.bound_s, place.rule
        if not (steps_s := list(self._steps_s)):
            return self._hang_s * PATIENCE, f"{_PATIENT}, for the first step"
        k, median = self._k, statistics.median(steps_s)
        several = f" times {k} in a dispatch" if k > 1 else ""
        rule = f"resilience.hang is {self._hang_s:g} s, the median step {median:.3g} s{several}"
        return max(self._hang_s, TIMES_MEDIAN * median * k), rule

    def _watch(self) -> None:
        period = min(_LOOK_S, self._hang_s / 10)
        while not self._stop.wait(period):
            with suppress(CoordinationError):  # a lost process 0 is told by `peer_failure.py`
                self._look()

    def _look(self) -> None:
        place, (bound_s, rule) = self.look()
        waited = time.monotonic() - place.since
        overdue = bound_s is not None and waited > bound_s
        if processes.count() > 1:
            told = place._replace(bound_s=bound_s, since=waited)._asdict()
            kv_store.put(f"watchdog/places/{processes.index()}", json.dumps(told))
            if (text := kv_store.try_get("watchdog/hang")) is not None:
                self._give_up(text)
            overdue = overdue and not self._is_excused()
        if overdue:
            doing = "no step has ended" if place.phase == _TRAINING else f"{place.phase} has not moved on"
            text = f"{doing} for {waited:.1f} s, where {bound_s:.1f} s are allowed ({rule})"
            kv_store.put_first("watchdog/hang", text)
            self._give_up(kv_store.try_get("watchdog/hang") or text)

    def _is_excused(self) -> bool:
        """Whether a peer does something that may take longer than a step, so that this process rightly waits."""
        now, told = time.monotonic(), kv_store.entries("watchdog/places")
        for index, text in told.items():
            if index == str(processes.index()):
                continue
            if self._peers.get(index, ("", 0.0))[0] != text:
                self._peers[index] = (text, now)
            place = Place(**json.loads(text))
            waited = place.since + now - self._peers[index][1]
            if place.phase != _TRAINING and (place.bound_s is None or waited <= place.bound_s):
                return True
        return False

    def _give_up(self, text: str) -> NoReturn:
        """Writes this process's stacks, waits for those of the others, and ends it."""
        place, index = self.place, str(processes.index())
        file = stacks.dump(self._folder / f"attempt-{self._attempt}-process-{index}.txt")
        print(stacks.main_thread(), file=sys.stderr, flush=True)
        told = {**place._asdict(), "where": stacks.where()}
        everybody: dict[str, Mapping[str, object]] = {index: told}
        with suppress(CoordinationError):
            kv_store.put(f"watchdog/stacks/{index}", json.dumps(told))
            end = time.monotonic() + _COLLECT_S
            while len(everybody) < processes.count() and time.monotonic() < end:
                time.sleep(0.05)
                found = kv_store.entries("watchdog/stacks")
                everybody |= {i: json.loads(text) for i, text in found.items()}
        shutdown.end(
            Hang(
                f"{text}. {_who(everybody, processes.count())} All stacks: {file.parent if file else 'none written'}. "
                "The same command goes on from the newest checkpoint."
            )
        )


class Phase:
    """What the main thread does while it is open. A context manager that may be entered again, but not in itself.

    Args:
        watchdog: that is told.
        inside: what it does.
        after: the same for what follows; None: what was before.
    """

    def __init__(self, watchdog: Watchdog, inside: Doing, after: Doing | None = None):
        self._watchdog, self._inside, self._after = watchdog, inside, after
        self._then = inside

    def __enter__(self) -> None:
        self._then = self._after or self._watchdog.doing
        self._watchdog.enter(self._inside)

    def __exit__(self, *exception: object) -> None:
        self._watchdog.enter(self._then)


def build_watchdog(config: Config, directory: RunDirectory) -> Watchdog:
    """Returns the watchdog of an attempt."""
    hang, timeout = config.resilience.hang, config.checkpoint.timeout
    k = config.train.steps_per_dispatch
    return Watchdog(hang.seconds, timeout.seconds, directory.stacks, directory.attempt, k)


def _who(everybody: Mapping[str, Mapping[str, object]], count: int) -> str:
    """The sentence about who is behind, and where."""
    if silent := set(range(count)) - {int(index) for index in everybody}:
        return f"{name(silent).capitalize()} does not answer: stopped, or stuck with Python's lock."
    steps = {int(index): (told["dispatched"], told["arrived"]) for index, told in everybody.items()}
    least = min(steps.values())  # pyright: ignore[reportArgumentType, reportCallIssue]
    behind = sorted(index for index, reached in steps.items() if reached == least)
    where = "; ".join(
        f"process {index} has dispatched {steps[index][0]} steps, is {everybody[str(index)]['phase']}, at "
        f"{everybody[str(index)]['where']}"
        for index in behind
    )
    if len(behind) == count:
        return f"All are at the same point: {where}." if count > 1 else f"{where}."
    return f"{name(behind).capitalize()} {'is' if len(behind) == 1 else 'are'} behind: {where}."
