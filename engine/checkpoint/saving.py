"""One save after the other, written while the loop goes on; its end comes in time, and every process learns it.

Owns: the threads that write, how processes agree on what became of a save, and what a step's directory holds. Does not
own: the format of the arrays (`arrays.py`), the manifest (`write_manifest.py`), which steps are there and how one is
restored (`store.py`), when a save is due (`policy.py`), what happens after a failure (`checkpointer.py`).

A save is written into a folder of its own, `<step>.<n>.saving`: each process its part of the arrays, then the first
one, once it knows that all parts are there, what makes it whole and its manifest, and last the rename to `<step>`.
What processes tell each other goes through the key-value store (`cluster/kv_store.py`) and never through the
devices, which the loop uses meanwhile. The first process alone says how a save ended; at the deadline a timer of it
does, which touches no storage. So every wait for a save has a bound, also where a disk never answers.

Terms. *Under way*: started, and its end is not known here. *Part*: what one process writes. *Verdict*: how a save
ended, as the first process says it. *Abandoned*: ended by its deadline, while a thread may still hang in a system call.
"""

import functools
import itertools
import json
import os
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.checkpoint import arrays
from engine.checkpoint.manifest import sync_folder
from engine.checkpoint.write_manifest import HASHED, Seal
from engine.cluster import kv_store, processes
from engine.run import storage
from engine.run.lease import ALWAYS_GRANTED, Lease

MARKER = "commit_success.txt"  # every part is written
WRITTEN = "written"  # the folder of keys in which each process but the first says that it has written its part
SAVING, DELETED = ".saving", ".deleted"  # suffixes of directories that no step is in, or not any more
STATE, POSITION, CONFIG = "state", "position/position.json", "config/config.json"

_POLL_S = 0.05  # between two looks at which processes have written their parts
_MOMENT_S = 1.0  # the age until which a save is waited for rather than have the next one skipped
_BACK_S = 1.0  # for the thread of an ended save to end too
_savers = itertools.count()  # of this process, the same in every process
_LATE_S = 30.0  # for a verdict to reach the other processes after the deadline


@dataclass(frozen=True)
class Ended:
    """A save that has ended: durable where `failure` is empty, else what went wrong, in words."""

    step: int
    failure: str = ""


@dataclass
class _Save:
    """One save under way."""

    step: int
    number: int  # of saves of this attempt, from 1
    key: str  # of what processes tell each other about it
    questions: int  # answers about earlier saves, which nobody reads any more once all have written this one
    folder: Path
    size: int  # bytes of the state
    state: Any = None  # until it is written: its memory is not kept any longer, and not freed by a thread that ends
    started: float = field(default_factory=time.monotonic)
    copied: threading.Event = field(default_factory=threading.Event)  # the loop's arrays are not needed any more
    done: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)  # held while the end is decided
    failure: str = ""
    stage: str = "writing its part"  # of this process, for the sentence at the deadline
    awaited: str = WRITTEN  # what the others are to say
    digests: Any = None  # what computes them for this state (`parallel/digest.py`)
    rows: Any = None  # the digests by device, on their way
    seal: Seal | None = None  # None where nothing is written


class Saver:
    """Writes the steps of a run into its directory, one at a time.

    Args:
        directory: where the step directories lie.
        timeout_s: seconds from the start of a save to its end, whatever the storage does.
        lease: of the run directory, verified before anything is removed and before a step appears.

    With several processes, all call `free` and `start` at the same steps.
    """

    def __init__(self, directory: Path, timeout_s: float, lease: Lease = ALWAYS_GRANTED):
        self.directory, self.timeout_s, self._lease = directory, timeout_s, lease
        self._save: _Save | None = None  # the newest
        self._told = True  # whether its end was asked for
        self._writer: storage.Background | None = None  # the thread of the newest
        self._digests: Any = None
        self._in_doubt: list[_Save] = []  # failed ones, in whose folders other processes may still write
        self._saves = self._questions = self._forgotten = 0  # so far, the same numbers in every process
        self._key = f"save/{next(_savers)}"

    @property
    def under_way(self) -> int | None:
        """The step of the save under way, as far as this process knows."""
        return None if self._save is None or self._save.done.is_set() else self._save.step

    def prepare(self, state: Any) -> None:
        """Compiles what a save of such a state computes, so that the first one holds the loop up no longer."""
        self._digests_for(state).rows(state).block_until_ready()

    def free(self, wait: bool) -> bool:
        """Whether no save is under way, by the first process's word in all of them.

        One that began less than a second ago is waited for until it is so old: it is nearly over, and of a run whose
        steps take milliseconds hardly a step would be saved otherwise.

        Args:
            wait: for the end of the one that is, which comes in time.
        """
        if wait:
            self.wait()
        self._questions += 1
        key = f"{self._key}/free/{self._questions}"
        if processes.is_primary():
            if self._save is not None:
                self.wait(max(0.0, self._save.started + _MOMENT_S - time.monotonic()))
            free = self.under_way is None
            if processes.count() > 1:
                kv_store.put(key, "yes" if free else "no")
            return free
        answer = kv_store.get(key, self.timeout_s + _LATE_S)
        if answer is None:
            raise kv_store.CoordinationError(
                f"process {processes.index()} waited {self.timeout_s + _LATE_S:g} s for process 0 to come to a save. "
                "See what holds it up; the same command goes on from the newest checkpoint."
            )
        if answer == "yes":
            self.wait()  # the end that process 0 knows is here in a moment
        return answer == "yes"

    def start(self, step: int, state: Any, position: Mapping[str, Any], config_text: str) -> None:
        """Starts to write a step, in place of one of that name; none may be under way.

        On CPU it returns once the state is copied; on an accelerator, once it is copied to the host, or at the
        deadline. What fails later is told by `ended`.
        """
        import jax

        self._saves += 1
        self._save = save = _Save(
            step,
            self._saves,
            f"{self._key}/{self._saves}",
            self._questions,
            self.directory / f"{step}.{self._saves}{SAVING}",
            sum(array.nbytes for array in jax.tree.leaves(state)),
        )
        self._told = False
        hangs = self._hangs()  # and keeps a whole state in memory: another one may not fit
        copied, state = (True, None) if hangs else _apart(state)
        if not hangs:
            save.state = state
            save.digests = self._digests_for(state)
            if not copied:  # of a copy they are taken when it is written, so that the next step has the cores
                save.rows = save.digests.rows(state)
            save.seal = Seal(
                save.folder,
                step,
                save.key,
                digests=lambda: save.digests.counted(save.rows),
                texts=save.digests.texts,
                going=lambda: not save.done.is_set(),
            )
        texts = {POSITION: json.dumps(dict(position)), CONFIG: json.dumps({"lines": config_text.split("\n")})}
        if processes.is_primary():
            timer = threading.Timer(self.timeout_s, self._too_late, (save,))
            timer.daemon = True
            timer.start()
            write = functools.partial(self._write_and_commit, save, texts, timer)
        else:
            threading.Thread(target=self._follow, args=(save,), daemon=True, name="save-verdict").start()
            write = functools.partial(self._write_part, save)
        if hangs:
            self._refuse(save, "the disk has still not answered the save before")
        else:
            self._writer = storage.Background(write, f"save-{step}")
        if not copied:
            save.copied.wait(self.timeout_s)

    @property
    def has_ended(self) -> bool:
        """Whether the newest save has ended, and `ended` has not told it yet."""
        return not self._told and self._save is not None and self._save.done.is_set()

    def ended(self) -> Ended | None:
        """The end of the newest save, once, as soon as it is known; never waits."""
        if not self.has_ended or self._save is None:
            return None
        self._told = True
        return Ended(self._save.step, self._save.failure)

    def wait(self, timeout_s: float | None = None) -> None:
        """Waits until no save is under way, or for `timeout_s` seconds; without it the save's own deadline holds."""
        if self._save is not None:
            self._save.done.wait(self.timeout_s + 2 * _LATE_S if timeout_s is None else timeout_s)

    def _digests_for(self, state: Any) -> Any:
        """What computes the digests of such a state."""
        from engine.parallel.digest import Digests  # loads JAX

        if self._digests is None or not self._digests.fits(state):
            self._digests = Digests(state)
        return self._digests

    def _hangs(self) -> bool:
        """Whether the thread of an abandoned save has still not come back."""
        try:
            if self._writer is not None:
                self._writer.result(_BACK_S)
        except storage.StorageTimeout:
            return True
        except Exception:
            return False  # it is back, and what it raised was told by the verdict
        return False

    def _refuse(self, save: _Save, words: str) -> None:
        """Ends a save that this process does not write."""
        if processes.is_primary():
            self._end(save, words)
        else:
            kv_store.put(f"{save.key}/{WRITTEN}/{processes.index()}", words)

    def _write(self, save: _Save) -> str:
        """Writes this process's part; returns what went wrong, in words."""
        state, save.state = save.state, None
        try:
            for folder in (save.folder.parent, save.folder):
                folder.mkdir(exist_ok=True)
            arrays.write(save.folder / STATE, state, save.copied.set)
            if save.rows is None:
                save.rows = save.digests.rows(state)
        except Exception as error:
            return arrays.words_of(error)
        finally:
            save.copied.set()
        return ""

    def _write_part(self, save: _Save) -> None:
        """The writing thread of a process that is not the first."""
        words = self._write(save)
        kv_store.put(f"{save.key}/{WRITTEN}/{processes.index()}", words)
        if not words and save.seal is not None:
            save.seal.hand_over()

    def _follow(self, save: _Save) -> None:
        """The thread of a process that is not the first that waits for the verdict; touches no storage."""
        try:
            verdict = kv_store.get(f"{save.key}/verdict", self.timeout_s + _LATE_S)
            words = "process 0 has not said how the save ended" if verdict is None else verdict
        except kv_store.CoordinationError as error:
            words = str(error)
        self._end(save, words)

    def _write_and_commit(self, save: _Save, texts: Mapping[str, str], timer: threading.Timer) -> None:
        """The writing thread of the first process."""
        try:
            self._sweep(save)
            words = self._write(save) or self._parts_of_others(save)
            if not words:
                words = self._commit(save, texts)
            if words:
                self._in_doubt.append(save)
                self._sweep(None)
                words += self._sizes(save)
        except Exception as error:
            words = arrays.words_of(error)
        self._end(save, words)
        timer.cancel()

    def _sweep(self, save: _Save | None) -> None:
        """Removes what failed saves have left: their space is needed.

        But not from under a process that still writes there: TensorStore then waits for ever for a lock's file.

        Args:
            save: the one that is to be written now.
        """
        self._lease.verify()
        others = processes.count() - 1
        self._in_doubt = [s for s in self._in_doubt if len(kv_store.entries(f"{s.key}/{WRITTEN}")) < others]
        kept = [s.folder for s in (*self._in_doubt, save) if s is not None]
        for leftover in self.directory.glob(f"*{SAVING}"):
            if leftover not in kept:
                shutil.rmtree(leftover, ignore_errors=True)

    def _parts_of_others(self, save: _Save) -> str:
        """Waits until all processes have written; returns what went wrong in one of them, in words."""
        save.stage = ""
        while not save.done.is_set():
            said = kv_store.entries(f"{save.key}/{WRITTEN}")
            for index, words in sorted(said.items()):
                if words:
                    return f"process {index}: {words}"
            if len(said) == processes.count() - 1:
                return ""
            save.done.wait(_POLL_S)
        return save.failure

    def _commit(self, save: _Save, texts: Mapping[str, str]) -> str:
        """Makes the parts a step; returns what went wrong, in words."""
        save.stage = "finishing it"
        try:
            arrays.finish(save.folder / STATE)
            for name, text in (*texts.items(), (MARKER, "every part is written\n")):
                _write_durably(save.folder / name, text)
            save.stage, save.awaited = "hashing its files", HASHED
            if save.seal is not None:
                save.seal.write(lambda: setattr(save, "stage", ""))
        except Exception as error:
            return arrays.words_of(error)
        self._lease.verify()
        target, old = self.directory / str(save.step), save.folder.with_suffix(DELETED)
        with save.lock:  # a save that was abandoned in the meantime must not appear
            if save.done.is_set():
                return save.failure
            save.stage = "renaming it"
        try:
            if target.exists():
                target.rename(old)
            save.folder.rename(target)
            sync_folder(self.directory)
        except OSError as error:
            return arrays.words_of(error)
        shutil.rmtree(old, ignore_errors=True)
        return ""

    def _too_late(self, save: _Save) -> None:
        """The timer of the first process, at the deadline."""
        missing = [f"process 0 is {save.stage}"] if save.stage and processes.count() > 1 else []
        if processes.count() > 1:
            try:
                said = kv_store.entries(f"{save.key}/{save.awaited}")
            except kv_store.CoordinationError:
                said = {}
            what = "writing" if save.awaited == WRITTEN else "hashing"
            missing += [f"process {i} is {what}" for i in range(1, processes.count()) if str(i) not in said]
        who = f": {', '.join(missing)}" if missing else ""
        self._end(save, f"not written within checkpoint.timeout, {self.timeout_s:g} s{who}{self._sizes(save)}")

    def _sizes(self, save: _Save) -> str:
        return f"; {storage.free_space(self.directory)}, the state has {storage.size_text(save.size)}"

    def _end(self, save: _Save, words: str) -> None:
        """Decides how a save ended, unless that is decided already, and tells the other processes."""
        with save.lock:
            if save.done.is_set():
                return
            save.failure = words
            save.done.set()
        if words:
            storage.suspect()
        if processes.is_primary() and processes.count() > 1:
            kv_store.put(f"{save.key}/verdict", words)
            if not words:  # all have written it, so they know of all that was before
                if all(other.number != save.number - 1 for other in self._in_doubt):
                    kv_store.delete(f"{self._key}/{save.number - 1}")
                for question in range(self._forgotten + 1, save.questions):
                    kv_store.delete(f"{self._key}/free/{question}")
                self._forgotten = max(self._forgotten, save.questions - 1)


def _apart(state: Any) -> tuple[bool, Any]:
    """Returns whether the arrays are copies, and the arrays: on CPU copies, which Orbax reads where they lie.

    The loop's own stay free to be donated. Without it, the next step copies the whole state beside the writer at work,
    which takes twice as long. On an accelerator Orbax itself copies, to the host.
    """
    import jax

    if jax.default_backend() != "cpu":
        return False, state
    return True, jax.device_put(state, jax.tree.map(lambda x: x.sharding, state), may_alias=False)


def _write_durably(path: Path, text: str) -> None:
    """Writes a small file that a power failure does not take back."""
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
