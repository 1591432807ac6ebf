"""Saves one step at a time while training continues; each save has a deadline and the same result in all processes.

A save is written to a folder `<step>.<n>.saving`, each process its part of the arrays. The primary merges the hashes of
all processes into the manifest and renames the folder to `<step>`. Processes agree through the process group, never
through the devices, which the loop uses meanwhile. At the deadline a thread of the primary that touches no storage
fails the save, so every wait ends even if a disk never answers.
"""

import contextlib
import functools
import itertools
import json
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.base.errors import CheckpointError, ConvoyError
from engine.base.formatting import size_text
from engine.base.types import Json, PyTree
from engine.checkpoint import arrays, timeouts
from engine.checkpoint.arrays import error_text
from engine.checkpoint.integrity import HashedPart, hash_part, read_back, write_merged_manifest
from engine.checkpoint.manifest import (
    CONFIG,
    DELETED,
    FROZEN,
    POSITION,
    SAVING,
    STATE,
    divide_files,
    files_of,
    sync_folder,
    write_durably,
)
from engine.checkpoint.save_stages import AsyncSave, SaveFailed, SaveStage
from engine.cluster import group
from engine.cluster.shutdown import RunThread, failures_end_process
from engine.run.lease import ALWAYS_GRANTED, Lease
from engine.storage import background

if TYPE_CHECKING:
    import numpy as np

    from engine.checkpoint.frozen import Frozen
    from engine.parallel.digest import Digests

MARKER = "commit_success.txt"  # written before hashing, when the arrays of all processes are complete
_savers = itertools.count()  # processes create their savers in the same order, so a saver has the same number in all


_REPORT = {SaveStage.WRITING: 1, SaveStage.HASHING: 2}  # stage -> gather in which each process reports its end


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

    def describe(self) -> str:
        """Returns what the latest save writes: "step 5"."""
        if self._latest is None or not self._latest.is_step:
            return "the folder of frozen parameters"
        return f"step {self._latest.step}"

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
        save hardly any step. The frozen parameters, which are saved once, get a minute.

        Args:
            wait: wait until the save in flight has ended, at most until its deadline.
        """
        if wait:
            self.wait()
        elif self._latest is not None and group.is_primary():
            grace_s = timeouts.RECENT_S if self._latest.is_step else timeouts.FROZEN_S
            self.wait(max(0.0, self._latest.started + grace_s - time.monotonic()))
        free = group.broadcast(self.in_flight is None, f"{self._topic}/free", self.timeout_s + timeouts.VERDICT_S)
        if free:
            self.wait()  # the verdict of the primary arrives soon
        return free

    def prepare(self, state: PyTree) -> None:
        """Compiles the computations of a save, so that the first save is as fast as later saves."""
        self._digests_of(state).rows(state).block_until_ready()

    def save(
        self,
        step: int,
        state: Mapping[str, PyTree],
        position: Mapping[str, Json],
        config_text: str,
        frozen: "Frozen | None" = None,
    ) -> None:
        """Starts to write a step; replaces a checkpoint of this step. The previous save must have ended.

        Returns once the state may be donated: on CPU after a copy, on an accelerator after the copy to the host.
        Returns at the deadline too: that save has failed. `poll` reports a failure.

        Args:
            step: its number.
            state: pytree of arrays.
            position: in the data.
            config_text: the resolved config.
            frozen: parameters of the state that are saved already, and that the step refers to.
        """
        texts = {POSITION: json.dumps(dict(position)), CONFIG: json.dumps({"lines": config_text.split("\n")})}
        if frozen is not None:
            texts[FROZEN] = frozen.to_text()
        self._start(str(step), step, state, self._digests_of(state), texts, frozen)

    def save_frozen(self, step: int, state: Mapping[str, PyTree], paths: Sequence[str]) -> None:
        """Starts to write parameters of a state to their own folder; likewise. `poll` returns them in `frozen`."""
        from engine.checkpoint.frozen import Frozen, folder_name, only
        from engine.parallel.digest import Digests  # loads JAX

        part = only(state, paths)
        self._start(folder_name(step), step, part, Digests(part), {}, Frozen(folder_name(step), "", tuple(paths)))

    def _start(
        self,
        name: str,
        step: int,
        state: Mapping[str, PyTree],
        digests: "Digests",
        texts: Mapping[str, str],
        frozen: "Frozen | None",
    ) -> None:
        import jax

        self._count, self._polled = self._count + 1, False
        is_step = name == str(step)
        stored = frozen.left_out_of(state) if is_step and frozen is not None else state
        size = sum(array.nbytes for array in jax.tree.leaves(stored))
        folder = self.directory / f"{name}.{self._count}{SAVING}"
        save = self._latest = AsyncSave(step, self._count, f"{self._topic}/{self._count}", folder, size, name)
        save.frozen = frozen
        hangs = self._writer_hangs()  # a hanging writer holds a copy of the state, and a second may not fit
        copied, stored = (True, None) if hangs else arrays.copied_on_cpu(stored)
        part = None if hangs else _Part(stored, state, digests)
        watch = self._watch_deadline if group.is_primary() else self._follow_verdict
        RunThread(watch, f"watch-save-{name}", (save,)).start()
        if part is None:
            return self._refuse(save, "the storage has still not answered the previous save")
        if group.is_primary():
            write = functools.partial(self._write_and_commit, save, part, texts)
        else:
            write = functools.partial(self._write_part, save, part)
        self._writer = background.Background(write, f"save-{name}")
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
            part.write(save.folder, save.copied)
            self._gather(save, {})
            save.advance(SaveStage.WRITING, SaveStage.FINISHING)
            arrays.finish(save.folder / STATE)
            for name, text in (*texts.items(), (MARKER, "every part is written\n")):
                write_durably(save.folder / name, text)
            save.advance(SaveStage.FINISHING, SaveStage.HASHING)
            names = group.scatter(divide_files(files_of(save.folder), group.count()), save.topic)
            parts = self._gather(save, hash_part(save.folder, names, part.digests))
            save.refer_to(write_merged_manifest(save.folder, save.step, parts, part.texts))
            if not (self._read_back and save.is_step):  # the first step shows whether later steps can be read
                read_back(save.folder, STATE)
                self._read_back = save.is_step
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
        target, old = self.directory / save.name, save.folder.with_suffix(DELETED)
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
                part.write(save.folder, save.copied)
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

    Args:
        stored: the arrays that are written.
        state: the arrays that have digests.
        digests: of `state`.
    """

    def __init__(self, stored: PyTree, state: PyTree, digests: "Digests"):
        self._stored, self._digests, self._rows = stored, digests, digests.rows(state)
        self.texts = digests.texts

    def write(self, folder: Path, copied: threading.Event) -> None:
        """Writes the arrays to the folder of a save and drops the reference to them, so that their memory is free.

        Sets `copied` once they may be donated or deleted.
        """
        stored, self._stored = self._stored, None
        try:
            for path in (folder.parent, folder):
                path.mkdir(exist_ok=True)
            arrays.write(folder / STATE, stored, copied.set)
        finally:
            copied.set()

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
