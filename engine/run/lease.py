"""One writer at a time: the lease of a run directory, which one process holds and shows to be alive.

Owns: the folder `lease/` of a run, how a lease is got, kept, lost and given back. Does not own: whether a process lives
(`owner.py`), or who asks before writing (`trainer.py`).

A lease is the file of the highest number, `lease/<number>.json`: its owner, and a counter that a thread of the owner
moves. It is taken by making the file of the next number, which exactly one of several processes can (O_EXCL), also on a
shared file system. The file of the highest number is never removed, so that one who looked a moment ago makes a number
that is too low, sees it, and withdraws. Clocks of hosts are never compared: an owner that cannot be seen from here is
given up when its counter has not moved for `STALE_S` seconds of the observer's own monotonic clock.

Terms. *Stale*: left by a process that is no more. *Beat*: one move of the counter. *Lost*: taken by another process,
after this one was stopped for long (a suspended machine, SIGSTOP); it must not write any more.
"""

import json
import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from engine.config.errors import ConvoyError, RunError
from engine.mounts import shown
from engine.run.atomic import cannot_write
from engine.run.owner import Owner, is_alive

BEAT_S = 2.0  # between two moves of the counter
STALE_S = 20.0  # without a move, of an owner that cannot be seen: ten beats
GRACE_S = 5.0  # for an owner on this host that is about to end
LOOK_S = 5.0  # the longest that a save waits for a look at the lease: storage may hang
_POLL_S = 0.1
_RELEASED = "released"


class LeaseLost(ConvoyError):
    """Another job has taken over this run directory; this process must write nothing more there."""


@dataclass(frozen=True)
class _Record:
    """What a lease file says; `owner` is None where it cannot be read, as of a process killed while it wrote."""

    owner: Owner | None
    released: bool


def _text(owner: Owner, beat: int | str) -> str:
    """The content of a lease file, of the same length at each beat, so that it is overwritten in place."""
    return json.dumps({**asdict(owner), "beat": f"{beat:>12}"}, indent=1) + "\n"


def _parse(text: str) -> _Record:
    try:
        fields = json.loads(text)
        beat = fields.pop("beat")
        return _Record(Owner(**fields), beat.strip() == _RELEASED)
    except (ValueError, TypeError, AttributeError, KeyError):
        return _Record(None, False)


class Lease:
    """A lease that this process holds; a thread keeps it until `release`. Made by `acquire`.

    Args:
        path: its file.
        owner: as it stands there.
        told: why it could be taken from another owner, a sentence; "" where it was free.
        beat_s: seconds between two moves of the counter.
    """

    def __init__(self, path: Path, owner: Owner, told: str, beat_s: float = BEAT_S):
        self.path, self.owner, self.told, self._beat_s = path, owner, told, beat_s
        self._lost: str | None = None  # the sentence
        self._released = False
        self._asked = threading.Event()
        self._turn = threading.Condition()
        self._begun = self._ended = 0  # looks
        self._looked_at = self._asked_at = _awake_or_not()  # when the last whole look began, and the last question
        self._thread = threading.Thread(target=self._keep, daemon=True, name="lease")
        self._thread.start()

    def check(self) -> None:
        """Raises LeaseLost if the lease is known to be lost.

        It waits for no disk but when nobody has looked or asked for long: then this process may have been stopped, and
        whatever thread of it wakes first looks before it writes.
        """
        now = _awake_or_not()
        if now - max(self._looked_at, self._asked_at) > STALE_S / 2:
            self.verify()
        elif self._lost is not None:
            raise LeaseLost(self._lost)
        self._asked_at = now

    def verify(self) -> None:
        """Looks at the lease now, for `LOOK_S` seconds at most, and raises LeaseLost if it is lost.

        Storage that does not answer says nothing about the lease; the write that comes next meets it itself. If this
        process was stopped while it waited, it waits once more.
        """
        with self._turn:
            wanted = self._begun + 1  # a look that began earlier may have seen what is no longer so
            self._asked.set()
            began = _awake_or_not()
            for _ in range(2):
                known = self._turn.wait_for(lambda: self._ended >= wanted or self._lost is not None, LOOK_S)
                if known or _awake_or_not() - began < 2 * LOOK_S:
                    break
        if self._lost is not None:
            raise LeaseLost(self._lost)

    def release(self) -> None:
        """Gives the lease back, unless it is lost; a second call does nothing."""
        self._released = True
        self._asked.set()
        self._thread.join(LOOK_S)

    def _keep(self) -> None:
        """The thread: looks and beats until the lease is released or lost."""
        released = False
        while self._lost is None and not released:
            self._asked.wait(self._beat_s)
            self._asked.clear()
            released = self._released
            with self._turn:
                self._begun += 1
            now = _awake_or_not()
            with suppress(OSError):  # storage in trouble: tried again at the next beat
                self._look_and_beat(_RELEASED if released else self._begun)
                self._looked_at = now
            with self._turn:
                self._ended = self._begun
                self._turn.notify_all()

    def _look_and_beat(self, beat: int | str) -> None:
        newest, text = _newest(self.path.parent)
        if newest == 0 and not self.path.parent.is_dir():
            return  # moved away or not mounted: nobody took it, and a save, which makes no run directory, will fail
        record = _parse(text)
        if record.owner is None or record.owner.id != self.owner.id:
            by = "" if record.owner is None else f": {record.owner}"
            self._lost = (
                f"{self.path.parent.parent}: another job has taken over this run{by}. This process was stopped for "
                f"more than {STALE_S:g} s or its directory was replaced, so it ends without writing anything more. "
                "Nothing is to be done: the other job goes on."
            )
            return
        _overwrite(self.path, _text(self.owner, beat))


def acquire(folder: Path, *, beat_s: float = BEAT_S, stale_s: float = STALE_S, grace_s: float = GRACE_S) -> Lease:
    """Takes the lease of a run directory; at once where it is free, its owner is gone, or the token is the same.

    Args:
        folder: `lease/` in the run directory, made if it is missing.
        beat_s, stale_s, grace_s: as the constants of this file.

    Raises:
        RunError: another job holds it, named with what to do; or the folder cannot be written.
    """
    run, me = folder.parent, Owner()
    try:
        folder.mkdir(exist_ok=True)
        while True:
            number, text = _newest(folder)
            told = "" if number == 0 else _wait_until_free(folder, number, text, me, stale_s, grace_s)
            if told is not None and _claim(folder, number + 1, _text(me, 0)):
                return Lease(folder / f"{number + 1}.json", me, told, beat_s)
    except OSError as error:
        raise cannot_write(run, error) from error


def _wait_until_free(folder: Path, number: int, text: str, me: Owner, stale_s: float, grace_s: float) -> str | None:
    """Returns why a lease may be taken, "" for one that was given back; None when it is no longer the newest.

    Raises:
        RunError: its owner lives.
    """
    run, first, start, record = folder.parent, text, time.monotonic(), _parse(text)
    watched = False
    while not record.released:
        owner, waited = record.owner, time.monotonic() - start
        alive = None if owner is None else is_alive(owner)
        if alive is False:
            return f"{owner} has left this run without an end; going on in its place"
        if alive is None and owner is not None and me.token and owner.token == me.token:
            return f"{owner} was an earlier start of this job; going on in its place"
        if alive is None and waited >= stale_s:
            return f"{_name(owner)} has not moved its lease of this run for {stale_s:g} s; going on in its place"
        if (alive and waited >= grace_s) or (alive is None and text != first):
            raise _refusal(run, owner, bool(alive))
        if alive is None and not watched:
            watched = True
            note = f"{shown(run)}: held by {_name(owner)}; looking for {stale_s:g} s whether it still lives"
            print(note, file=sys.stderr, flush=True)
        time.sleep(_POLL_S)
        newest, text = _newest(folder)
        if newest != number:
            return None
        record = _parse(text)
    return ""


def _refusal(run: Path, owner: Owner | None, here: bool) -> RunError:
    stop = f" (kill {owner.pid})" if here and owner is not None else ""
    return RunError(
        f"{shown(run)}: another job trains here: {_name(owner)}. Two jobs would mix up one run. Wait for its end or "
        f"stop it{stop}, then start again; or name another --workdir=DIR."
    )


def _name(owner: Owner | None) -> str:
    return "a process that has not written its name" if owner is None else str(owner)


def _newest(folder: Path) -> tuple[int, str]:
    """The highest number and what its file says; (0, "") where there is none."""
    while True:
        names = (entry.name.removesuffix(".json") for entry in folder.iterdir()) if folder.is_dir() else ()
        number = max((int(name) for name in names if name.isdecimal()), default=0)
        if number == 0:
            return 0, ""
        try:
            return number, (folder / f"{number}.json").read_text(encoding="utf-8")
        except FileNotFoundError:  # somebody took the next number and removed this one
            time.sleep(0.01)


def _claim(folder: Path, number: int, text: str) -> bool:
    """Makes the file of a number; whether this process did, and it is the highest."""
    path = folder / f"{number}.json"
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(descriptor, text.encode())
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(descriptor)
    if _newest(folder)[0] != number:
        path.unlink()
        return False
    for older in folder.glob("*.json"):
        if older.stem.isdecimal() and int(older.stem) < number:
            older.unlink(missing_ok=True)
    return True


def _awake_or_not() -> float:
    """Seconds that also count while the machine is suspended, where its system tells them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _overwrite(path: Path, text: str) -> None:
    """Writes over a file that is there, and makes none: it may have been removed by one who took the lease."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(descriptor, text.encode(), 0)
    finally:
        os.close(descriptor)
