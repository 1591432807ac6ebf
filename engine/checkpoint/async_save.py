"""Saves one step at a time while training continues; each save has a deadline and the same result in all processes.

A save is written to a folder `<step>.<n>.saving`, each process its part of the arrays. The primary merges the hashes of
all processes into the manifest and renames the folder to `<step>`. Processes agree through the process group, never
through the devices, which the loop uses meanwhile. At the deadline a thread of the primary that touches no storage
fails the save, so every wait ends even if a disk never answers.
"""

import contextlib
import enum
import functools
import itertools
import json
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from engine.base.errors import CheckpointError, ConvoyError
from engine.base.formatting import size_text
from engine.base.types import Json, PyTree
from engine.checkpoint import arrays, timeouts
from engine.checkpoint.arrays import error_text
from engine.checkpoint.integrity import HashedPart, hash_part, read_back, write_merged_manifest
from engine.checkpoint.manifest import divide_files, files_of, sync_folder, write_durably
from engine.checkpoint.store import CONFIG, DELETED, POSITION, SAVING, STATE
from engine.cluster import group
from engine.cluster.shutdown import RunThread, failures_end_process
from engine.run.lease import ALWAYS_GRANTED, Lease
from engine.storage import background

if TYPE_CHECKING:
    import numpy as np

    from engine.parallel.digest import Digests

MARKER = "commit_success.txt"  # written before hashing, when the arrays of all processes are complete
_savers = itertools.count()  # processes create their savers in the same order, so a saver has the same number in all


class SaveStage(enum.Enum):
    """Progress of a save. The value completes "process 3 is ..." in the error at the deadline."""

    WRITING = "writing"  # each process writes its part of the arrays
    FINISHING = "finishing the arrays"  # work of the primary; the others wait in this stage
    HASHING = "hashing"  # each process hashes its share of the files
    COMMITTING = "renaming the step"  # work of the primary; the others wait in this stage
    DURABLE = "done"
    FAILED = "failed"


_REPORT = {SaveStage.WRITING: 1, SaveStage.HASHING: 2}  # stage -> gather in which each process reports its end


class SaveFailed(Exception):
    """The save has already failed; its writer thread must stop."""


class AsyncSave:
    """One save in flight: `WRITING -> FINISHING -> HASHING -> COMMITTING -> DURABLE`, or `FAILED` from any of them.

    The stage is changed, in each process, by:
        writer thread: advances it after the work of each stage, and fails it on an error.
        deadline thread (primary): fails it.
        verdict thread (other processes): advances it from COMMITTING to DURABLE, or fails it, as the primary decides.
    The loop only reads it and waits. If the deadline passes between the rename and DURABLE, the save counts as failed
    although its folder exists.
    """

    def __init__(self, step: int, number: int, topic: str, folder: Path, size: int):
        self.step, self.number, self.topic = step, number, topic  # number: counts the saves of this saver from 1
        self.folder, self.size = folder, size  # size: bytes of the state
        self.started = time.monotonic()
        self.copied = threading.Event()  # set when this save no longer reads the arrays of the train state
        self.stage, self.failure = SaveStage.WRITING, ""  # only `advance` and `fail` change them, under the lock
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def ended(self) -> bool:
        """Whether the save is durable or has failed."""
        return self._ended.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Waits until the save has ended; returns False after `timeout_s` seconds."""
        return self._ended.wait(timeout_s)

    def advance(self, old: SaveStage, new: SaveStage) -> None:
        """Moves from one stage to the next.

        Raises:
            SaveFailed: the save has failed.
        """
        with self._lock:
            if self.stage is SaveStage.FAILED:
                raise SaveFailed
            assert self.stage is old, f"step {self.step} is {self.stage.value}, not {old.value}"
            self.stage = new
            if new is SaveStage.DURABLE:
                self._ended.set()

    def fail(self, reason: str) -> bool:
        """Ends the save as failed, unless it has ended; returns whether this call failed it."""
        with self._lock:
            if self._ended.is_set():
                return False
            self.stage, self.failure = SaveStage.FAILED, reason
            self._ended.set()
            return True


class Saver:
    """Writes the steps of a run into its directory, one at a time.

    Args:
        directory: directory of the step directories.
        timeout_s: seconds from the start of a save to its end, even if the storage hangs.
        lease: lease of the run directory, verified before files are removed and before a folder gets its final name.

    All processes call `free` and `save` at the same steps.
    """

    def __init__(self, directory: Path, timeout_s: float = timeouts.SAVE_S, lease: Lease = ALWAYS_GRANTED):
        self.directory, self.timeout_s, self._lease = directory, timeout_s, lease
        self._topic = f"save/{next(_savers)}"
        self._latest: AsyncSave | None = None
        self._polled = True  # whether `poll` has returned the latest save
        self._count = 0  # number of saves
        self._read_back = False  # whether a save was read back
        self._writer: background.Background | None = None  # writer thread of the latest save
        self._abandoned: list[AsyncSave] = []  # failed saves; others may still write in their folders
        self._digests: Digests | None = None

    @property
    def in_flight(self) -> int | None:
        """The step of the save in flight, as known in this process; None if there is none."""
        return None if self._latest is None or self._latest.ended() else self._latest.step

    @property
    def has_events(self) -> bool:
        """Whether the latest save has ended and `poll` has not returned it."""
        return not self._polled and self._latest is not None and self._latest.ended()

    def poll(self) -> AsyncSave | None:
        """Returns the latest save, once, when it has ended; never waits."""
        if not self.has_events:
            return None
        self._polled = True
        return self._latest

    def wait(self, timeout_s: float | None = None) -> None:
        """Waits until no save is in flight, at most `timeout_s` seconds; by default until the deadline of the save."""
        if self._latest is not None:
            self._latest.wait(self.timeout_s + 2 * timeouts.VERDICT_S if timeout_s is None else timeout_s)

    def free(self, wait: bool) -> bool:
        """Whether no save is in flight, so that the next may start; every process returns the answer of the primary.

        It gives a save that has just started one second to end. Otherwise a run whose steps take milliseconds would
        save hardly any step.

        Args:
            wait: wait until the save in flight has ended, at most until its deadline.
        """
        if wait:
            self.wait()
        elif self._latest is not None and group.is_primary():
            self.wait(max(0.0, self._latest.started + timeouts.RECENT_S - time.monotonic()))
        free = group.broadcast(self.in_flight is None, f"{self._topic}/free", self.timeout_s + timeouts.VERDICT_S)
        if free:
            self.wait()  # the verdict of the primary arrives soon
        return free

    def prepare(self, state: PyTree) -> None:
        """Compiles the computations of a save, so that the first save is as fast as later saves."""
        self._digests_of(state).rows(state).block_until_ready()

    def save(self, step: int, state: PyTree, position: Mapping[str, Json], config_text: str) -> None:
        """Starts to write a step; replaces a checkpoint of this step. The previous save must have ended.

        Returns once the state may be donated: on CPU after a copy, on an accelerator after the copy to the host.
        Returns at the deadline too: that save has failed. `poll` reports a failure.
        """
        import jax

        self._count, self._polled = self._count + 1, False
        size = sum(array.nbytes for array in jax.tree.leaves(state))
        folder = self.directory / f"{step}.{self._count}{SAVING}"
        save = self._latest = AsyncSave(step, self._count, f"{self._topic}/{self._count}", folder, size)
        hangs = self._writer_hangs()  # a hanging writer holds a copy of the state, and a second may not fit
        copied, state = (True, None) if hangs else arrays.copied_on_cpu(state)
        part = None if hangs else _Part(state, self._digests_of(state))
        watch = self._watch_deadline if group.is_primary() else self._follow_verdict
        RunThread(watch, f"watch-save-{step}", (save,)).start()
        if part is None:
            return self._refuse(save, "the storage has still not answered the previous save")
        texts = {POSITION: json.dumps(dict(position)), CONFIG: json.dumps({"lines": config_text.split("\n")})}
        if group.is_primary():
            write = functools.partial(self._write_and_commit, save, part, texts)
        else:
            write = functools.partial(self._write_part, save, part)
        self._writer = background.Background(write, f"save-{step}")
        if not copied:
            save.copied.wait(self.timeout_s)

    def _digests_of(self, state: PyTree) -> "Digests":
        from engine.parallel.digest import Digests  # loads JAX

        if self._digests is None or not self._digests.matches(state):
            self._digests = Digests(state)
        return self._digests

    def _writer_hangs(self) -> bool:
        """Whether the writer thread of the previous save has still not returned."""
        with contextlib.suppress(Exception):  # the verdict has reported the error
            if self._writer is not None:
                self._writer.result(timeouts.ABANDONED_S)
        return self._writer is not None and not self._writer.done

    def _refuse(self, save: AsyncSave, reason: str) -> None:
        """Fails a save that this process does not write."""
        save.copied.set()
        if group.is_primary():
            self._abandoned.append(save)  # other processes write to its folder
            self._end(save, reason)
        else:
            _report(save, {"error": reason})

    # Threads of the primary

    @failures_end_process("save", passed=ConvoyError)  # the other threads report the loss of a peer
    def _write_and_commit(self, save: AsyncSave, part: "_Part", texts: Mapping[str, str]) -> None:
        """The writer thread of the primary."""
        try:
            self._remove_abandoned(save)
            part.write(save)
            self._gather(save, {})
            save.advance(SaveStage.WRITING, SaveStage.FINISHING)
            arrays.finish(save.folder / STATE)
            for name, text in (*texts.items(), (MARKER, "every part is written\n")):
                write_durably(save.folder / name, text)
            save.advance(SaveStage.FINISHING, SaveStage.HASHING)
            names = group.scatter(divide_files(files_of(save.folder), group.count()), save.topic)
            parts = self._gather(save, hash_part(save.folder, names, part.digests))
            write_merged_manifest(save.folder, save.step, parts, part.texts)
            if not self._read_back:  # the first save of an attempt shows whether later saves can be read
                read_back(save.folder, STATE)
                self._read_back = True
            self._commit(save)
            self._end(save, "")
        except Exception as error:
            self._abandoned.append(save)
            with contextlib.suppress(ConvoyError, OSError):  # the error above is the one to report
                self._remove_abandoned()
            self._end(save, f"{error_text(error)}{self._sizes(save)}")

    def _gather(self, save: AsyncSave, part: HashedPart) -> dict[int, HashedPart]:
        """Returns the reports of all processes at the end of a stage.

        Raises:
            CheckpointError: a process has failed.
            SaveFailed: the deadline has passed.
        """
        parts = _report(save, part, self.timeout_s + timeouts.VERDICT_S)
        for process, found in sorted(parts.items()):
            if error := found.get("error"):
                raise CheckpointError(f"process {process}: {error}" if process else error)
        if group.missing(parts):
            raise SaveFailed
        return parts

    def _commit(self, save: AsyncSave) -> None:
        """Renames the folder to its step."""
        target, old = self.directory / str(save.step), save.folder.with_suffix(DELETED)
        with self._lease.writing():
            save.advance(SaveStage.HASHING, SaveStage.COMMITTING)  # raises SaveFailed after a failure
            if target.exists():
                target.rename(old)
            save.folder.rename(target)
            sync_folder(self.directory)
            shutil.rmtree(old, ignore_errors=True)

    def _remove_abandoned(self, keep: AsyncSave | None = None) -> None:
        """Removes the folders of failed saves, to free their space; `keep` is about to be written.

        A folder stays while another process may still write there: without it, TensorStore in that process would wait
        forever for its lock file.
        """
        with self._lease.writing():
            self._abandoned = [save for save in self._abandoned if _others_may_write(save)]
            kept = [save.folder for save in (*self._abandoned, keep) if save is not None]
            for leftover in self.directory.glob(f"*{SAVING}"):
                if leftover not in kept:
                    shutil.rmtree(leftover, ignore_errors=True)

    def _watch_deadline(self, save: AsyncSave) -> None:
        """The deadline thread of the primary; never waits for storage."""
        if save.wait(self.timeout_s):
            return
        stage, missing = save.stage, [0]
        with contextlib.suppress(ConvoyError):  # failing the save matters more than naming the late process
            if stage in _REPORT:
                missing = group.missing(group.peek(save.topic, _REPORT[stage]))
        who = ", ".join(f"process {process} is {stage.value}" for process in missing[: group.LISTED])
        who = f": {who}" if who and group.count() > 1 else ""
        self._end(save, f"not written within checkpoint.timeout, {self.timeout_s:g} s{who}{self._sizes(save)}")

    def _sizes(self, save: AsyncSave) -> str:
        return f"; {background.free_space(self.directory)}, the state has {size_text(save.size)}"

    # Threads of the other processes

    @failures_end_process("save", passed=ConvoyError)  # the other threads report the loss of a peer
    def _write_part(self, save: AsyncSave, part: "_Part") -> None:
        """The writer thread of a process that is not the primary."""
        with contextlib.suppress(SaveFailed, group.Cancelled):
            try:
                part.write(save)
            except Exception as error:
                _report(save, {"error": error_text(error)})
                return
            save.advance(SaveStage.WRITING, SaveStage.FINISHING)
            _report(save, {})
            names = group.scatter([], save.topic, self.timeout_s, cancelled=save.ended)
            save.advance(SaveStage.FINISHING, SaveStage.HASHING)
            found = hash_part(save.folder, names, part.digests)
            save.advance(SaveStage.HASHING, SaveStage.COMMITTING)  # first: the report allows the verdict
            _report(save, found)

    def _follow_verdict(self, save: AsyncSave) -> None:
        """The verdict thread of a process that is not the primary; touches no storage."""
        try:
            failure = group.broadcast("", f"{save.topic}/verdict", self.timeout_s + timeouts.VERDICT_S)
        except ConvoyError as error:
            failure = str(error)
        self._end(save, failure)

    def _end(self, save: AsyncSave, failure: str) -> None:
        """Ends a save, unless it has ended; the primary broadcasts the verdict.

        Raises:
            SaveFailed: `failure` is empty, but the save has failed before.
        """
        if not failure:
            save.advance(SaveStage.COMMITTING, SaveStage.DURABLE)
        elif not save.fail(failure):
            return
        else:
            background.suspect()
        if group.is_primary():
            group.broadcast(failure, f"{save.topic}/verdict")
        if not failure and all(other.number != save.number - 1 for other in self._abandoned):
            for topic in (before := f"{self._topic}/{save.number - 1}", f"{before}/verdict"):
                group.forget(topic)  # all processes have written this save, so they no longer need the previous topic


class _Part:
    """The part of a state that one process writes, and its digests. Only the writer thread uses it.

    It is made in the thread of the steps, which starts the programs of the digests: where two threads start programs of
    several CPU devices, XLA (of JAX 0.11) hangs.
    """

    def __init__(self, state: PyTree, digests: "Digests"):
        self._state, self._digests, self._rows = state, digests, digests.rows(state)
        self.texts = digests.texts

    def write(self, save: AsyncSave) -> None:
        """Writes the arrays and drops the reference to them, so that their memory is free afterwards."""
        state, self._state = self._state, None
        try:
            for folder in (save.folder.parent, save.folder):
                folder.mkdir(exist_ok=True)
            arrays.write(save.folder / STATE, state, save.copied.set)
        finally:
            save.copied.set()

    def digests(self) -> "np.ndarray":
        """Returns this process's part of the digests, uint32 `[arrays, 2]`; may wait for the device."""
        return self._digests.partial_sum(self._rows)


def _report(save: AsyncSave, part: HashedPart, timeout_s: float = 0.0) -> dict[int, HashedPart]:
    """Sends the report of this process at the end of a stage; returns all reports on the primary, {} elsewhere."""
    return group.gather(
        part,
        save.topic,
        timeout_s,
        enough=lambda parts: any("error" in found for found in parts.values()),
        cancelled=save.ended,
    )


def _others_may_write(save: AsyncSave) -> bool:
    """Whether a process other than the primary has not reported that its part is written."""
    return len({0}.union(*(group.peek(save.topic, turn) for turn in _REPORT.values()))) < group.count()
