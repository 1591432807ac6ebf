"""The lease of a run directory: which process may write there.

The lease is the file with the highest number, `lease/<number>.json`: its owner, and a heartbeat counter. A process
takes it by creating the file with the next number (O_EXCL), which only one process can do, also on a shared file
system, and then removes the lower files. A process that acts on an outdated listing creates a number that is too low;
it removes that file and starts over.
Clocks of hosts are never compared: an owner on another host loses its lease when its counter has not changed for
`STALE_S` seconds of the observer's clock.
"""

import errno
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import NoReturn

from engine.base.errors import ConvoyError, RunError
from engine.base.files import read_text
from engine.base.json_text import parse
from engine.cluster import output
from engine.cluster.exit_status import ExitStatus
from engine.cluster.shutdown import RunThread
from engine.run import lease_copy
from engine.run.atomic import cannot_write, write_text
from engine.run.owner import Owner, is_alive
from engine.run.presence import Presence
from engine.storage.mounts import shown

HEARTBEAT_S = 2.0  # between two increments of the counter
STALE_S = 20.0  # ten heartbeats: an owner on another host that makes no increment for so long loses the lease
GRACE_S = 5.0  # how long `acquire` waits for a live owner on this host before it raises RunError
VERIFY_S = 5.0  # longest wait of a writer until the lease is verified: storage may hang
GONE_S = 1.0  # how long the lease must be missing until the directory counts as moved or removed
_POLL_S = 0.1
_RELEASED = "released"


class LeaseLost(ConvoyError):
    """Another job has taken over this run directory; this process must not write there any more."""


class DirectoryGone(LeaseLost):
    """The run directory was moved or removed. A restart at its path would begin at step 0, so there is none."""

    exit_code = ExitStatus.STOP


@dataclass(frozen=True)
class _Record:
    """The content of a lease file. `owner` is None if the file cannot be parsed: its writer was killed."""

    owner: Owner | None
    released: bool


_SHAPE = {f"{each.name}?": int if each.name == "pid" else str for each in fields(Owner)} | {
    "id": str, "host": str, "pid": int, "beat": str,
}  # fmt: skip


def _text(owner: Owner, heartbeat: int | str) -> str:
    """Returns the text of a lease file. Its length is constant, so that it can be overwritten in place."""
    return json.dumps({**asdict(owner), "beat": f"{heartbeat:>12}"}, indent=1) + "\n"


def _parse(text: str) -> _Record:
    try:
        found = parse(text, _SHAPE)
    except ValueError:
        return _Record(None, False)
    heartbeat = found.pop("beat")
    return _Record(Owner(**found), heartbeat.strip() == _RELEASED)


class Lease:
    """Permission to write in a run directory.

    Code uses `writing` to create, rename or remove files, `replace_text` for small files, and `check` before it appends
    and in the loop. This class always grants the permission. It serves processes that are not the primary, and tests.
    `acquire` returns a lease that can be lost.
    """

    takeover = ""  # the reason, a sentence, if it was taken from another owner; "" if the directory was free

    def check(self) -> None:
        """Raises LeaseLost if the lease thread has found the lease lost. Cheap: it reads no file."""

    def verify(self) -> None:
        """Reads the lease on disk and raises LeaseLost if it is lost. May take `VERIFY_S` seconds."""

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Verifies the lease; then the block may create, replace, rename and remove files of the run."""
        self.verify()
        yield

    def replace_text(self, path: Path, text: str) -> None:
        """Replaces a small file (`atomic.write_text`), if the lease is still held just before the rename."""
        self.check()
        write_text(path, text, self.check)

    def release(self) -> None:
        """Releases the lease, unless it is lost. A second call does nothing."""


ALWAYS_GRANTED = Lease()


class OwnedLease(Lease):
    """A lease that this process owns. A thread renews it until `release`. `acquire` creates it.

    Args:
        path: its file.
        owner: as written in the file.
        takeover: as for `Lease`.
        heartbeat_s: seconds between two increments of the counter.
    """

    def __init__(self, path: Path, owner: Owner, takeover: str, heartbeat_s: float = HEARTBEAT_S):
        self.path, self.owner, self.takeover, self._heartbeat_s = path, owner, takeover, heartbeat_s
        self._lost: LeaseLost | None = None
        self._presence = Presence(path.parent.parent)
        self._released = False
        self._wake = threading.Event()
        self._changed = threading.Condition()
        self._started = self._finished = 0  # number of the latest verification; `_started` is also the heartbeat
        self._verified_at = self._checked_at = _boottime()  # start of the last successful one, and the last check
        self._thread = RunThread(self._renew, "lease")
        self._thread.start()

    def check(self) -> None:
        """Raises LeaseLost if the lease is known to be lost.

        It waits for the disk only if the last verification and the last check are long ago. The process may have been
        stopped (SIGSTOP, a suspended machine), and the first thread that runs again must verify before it writes.
        """
        now = _boottime()
        if now - max(self._verified_at, self._checked_at) > STALE_S / 2:
            self.verify()
        elif self._lost is not None:
            self._raise_lost(self._lost)
        self._checked_at = now

    def verify(self) -> None:
        """Has the lease thread read the lease on disk, and raises LeaseLost if it is lost.

        If storage does not answer within `VERIFY_S` seconds, this returns without an error: the lease may still be
        held, and a write to such storage will itself fail or hang.
        """
        with self._changed:
            wanted = self._started + 1  # a verification that started earlier may have read an older state
            self._wake.set()
            began = _boottime()
            for _ in range(2):
                known = self._changed.wait_for(lambda: self._finished >= wanted or self._lost is not None, VERIFY_S)
                if known or _boottime() - began < 2 * VERIFY_S:
                    break  # otherwise this process was stopped during the wait, and the lease thread needs more time
        if self._lost is not None:
            self._raise_lost(self._lost)

    @staticmethod
    def _raise_lost(lost: LeaseLost) -> NoReturn:
        """Raises a new error, since several threads may raise it."""
        raise type(lost)(str(lost))

    def release(self) -> None:
        self._released = True
        self._wake.set()
        self._thread.join(VERIFY_S)

    def _renew(self) -> None:
        """The thread: verifies and increments until the lease is released or lost."""
        released = False
        while self._lost is None and not released:
            self._wake.wait(self._heartbeat_s)
            self._wake.clear()
            released = self._released
            with self._changed:
                self._started += 1
            now = _boottime()
            with suppress(OSError):  # storage in trouble: tried again at the next heartbeat
                self._verify_and_increment(_RELEASED if released else self._started)
                self._verified_at = now
            with self._changed:
                self._finished = self._started
                self._changed.notify_all()
        self._presence.close()

    def _verify_and_increment(self, heartbeat: int | str) -> None:
        newest, text = _newest(self.path.parent)
        if newest == 0:
            time.sleep(GONE_S)  # a directory that is back by then is no reason to end the run
            if _newest(self.path.parent)[0] == 0:
                self._lost = DirectoryGone(self._presence.what_happened())
            return
        record = _parse(text)
        if record.owner is None or record.owner.id != self.owner.id:
            by = "" if record.owner is None else f": {record.owner}"
            self._lost = LeaseLost(
                f"{self.path.parent.parent}: another job has taken over this run{by}. This process was stopped for "
                f"more than {STALE_S:g} s, the same job was started again, or the run directory was replaced. It ends "
                "without writing anything more. No action is needed: the other job continues the run."
            )
            return
        self._presence.refresh()
        _overwrite(self.path, _text(self.owner, heartbeat))


def acquire(
    folder: Path, *, heartbeat_s: float = HEARTBEAT_S, stale_s: float = STALE_S, grace_s: float = GRACE_S
) -> OwnedLease:
    """Takes the lease of a run directory.

    Takes it at once if it is free, if its owner is dead, if this directory is a copy of the owner's, or if its owner is
    on another host but has the token of this job, which all starts of a job share. Otherwise waits `grace_s` seconds
    for a live owner on this host, and `stale_s` seconds for a heartbeat of an owner on another host.

    Args:
        folder: `lease/` in the run directory; created if it is missing.
        heartbeat_s, stale_s, grace_s: see the constants of this file.

    Raises:
        RunError: another job owns it, or the folder cannot be written.
    """
    run, me = folder.parent, Owner()
    try:
        folder.mkdir(exist_ok=True)
        me = replace(me, folder=str(folder.resolve()), identity=lease_copy.identity(folder))
        while True:
            number, text = _newest(folder)
            takeover = "" if number == 0 else _wait_until_free(folder, number, text, me, stale_s, grace_s)
            if takeover is not None and _claim(folder, number + 1, _text(me, 0)):
                return OwnedLease(folder / f"{number + 1}.json", me, takeover, heartbeat_s)
    except OSError as error:
        if error.errno == errno.EINVAL and error.filename:  # a pipe or a folder
            raise RunError(
                f"{shown(Path(error.filename))}: {error.strerror}, but it should name the job that trains here. If "
                "none does, remove it, then start the same command again."
            ) from error
        raise cannot_write(run, error) from error


def current_owner(folder: Path) -> Owner | None:
    """Returns the process that owns the lease, alive or not; None if the lease is free or cannot be read."""
    with suppress(OSError):
        record = _parse(_newest(folder)[1])
        return None if record.released else record.owner
    return None


def _wait_until_free(folder: Path, number: int, text: str, me: Owner, stale_s: float, grace_s: float) -> str | None:
    """Returns why a lease may be taken, "" if it was released; None if another process has created a higher number.

    Raises:
        RunError: its owner is alive.
    """
    run, first_text, start, record = folder.parent, text, time.monotonic(), _parse(text)
    announced = False
    while not record.released:
        owner, waited = record.owner, time.monotonic() - start
        alive = None if owner is None else is_alive(owner)  # None: on another host, or the file cannot be parsed
        if alive is False:
            return f"{owner} ended without releasing this run; this job takes it over"
        if alive is None and owner is not None and me.token and owner.token == me.token:
            return f"{owner} was an earlier start of this job; this start takes the run over"
        if alive is None and waited >= stale_s:
            return f"{_name(owner)} has not renewed its lease of this run for {stale_s:g} s; this job takes it over"
        if alive and owner is not None and (copied_from := _copied_from(folder, owner)) is not None:
            where = f"trains in {shown(copied_from)}"
            return f"this directory is a copy: {owner} {where}; this job trains here under its own lease"
        if (alive and waited >= grace_s) or (alive is None and text != first_text):
            raise _refusal(run, owner, bool(alive))
        if alive is None and not announced:
            announced = True
            note = f"{shown(run)}: in use by {_name(owner)}; waiting {stale_s:g} s to see whether it is still alive"
            output.show(note)
        time.sleep(_POLL_S)
        newest, text = _newest(folder)
        if newest != number:
            return None
        record = _parse(text)
    return ""


def _copied_from(folder: Path, owner: Owner) -> Path | None:
    """Returns the run directory in which a live owner trains, if the run directory of `folder` is a copy of it."""
    original = lease_copy.original_of(folder, owner)
    if original is None:
        return None
    current = _parse(_newest(original)[1]).owner
    return Path(owner.folder).parent if current is not None and current.id == owner.id else None


def _refusal(run: Path, owner: Owner | None, here: bool) -> RunError:
    stop = f" (kill {owner.pid})" if here and owner is not None else ""
    if owner is not None and owner.folder and (trains_in := Path(owner.folder).parent) != run.resolve():
        return RunError(
            f"{shown(run)}: {owner} trains in {shown(trains_in)}. This directory is either the same one under another "
            "path, or a copy. Two jobs must not write to one run. If it is the same one, wait until that job ends or "
            f"stop it{stop}. If it is a copy that shares no files with it, delete {shown(run / 'lease')}. Then start "
            "again."
        )
    return RunError(
        f"{shown(run)}: another job trains here: {_name(owner)}. Two jobs must not write to one run. Wait until it "
        f"ends or stop it{stop}, then start again; or choose another --workdir=DIR."
    )


def _name(owner: Owner | None) -> str:
    return "an unknown process" if owner is None else str(owner)


def _newest(folder: Path) -> tuple[int, str]:
    """Returns the highest number and the text of its file; (0, "") if there is none."""
    while True:
        try:
            names = [name.removesuffix(".json") for name in os.listdir(folder)]
        except (FileNotFoundError, NotADirectoryError):  # other errors mean that the storage is in trouble
            names = []
        number = max((int(name) for name in names if _is_number(name)), default=0)
        if number == 0:
            return 0, ""
        try:
            return number, read_text(folder / f"{number}.json", errors="replace")
        except FileNotFoundError:  # another process took the next number and removed this one
            if (folder / f"{number}.json").is_symlink():
                return number, ""  # a link to nothing is no lease of a live process
            time.sleep(0.01)


def _is_number(name: str) -> bool:
    """Returns whether a file name without suffix is one that `_claim` writes: "12", but not "012" or other digits."""
    return name.isascii() and name.isdecimal() and not name.startswith("0")


def _claim(folder: Path, number: int, text: str) -> bool:
    """Creates the file with a number. Returns whether this process created it and its number is the highest."""
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
        if _is_number(older.stem) and int(older.stem) < number:
            older.unlink(missing_ok=True)
    return True


def _boottime() -> float:
    """Seconds since boot, including suspended time where the system provides it."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _overwrite(path: Path, text: str) -> None:
    """Overwrites an existing file. Never creates it: if the next owner has removed it, it must stay removed."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(descriptor, text.encode(), 0)
    finally:
        os.close(descriptor)
