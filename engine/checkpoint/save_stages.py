"""One save in flight and its stages, in one process."""

import dataclasses
import enum
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from engine.base.errors import CheckpointError
from engine.checkpoint.manifest import Manifest

if TYPE_CHECKING:
    from engine.checkpoint.frozen import Frozen


class SaveStage(enum.Enum):
    """Progress of a save. The value completes "process 3 is ..." in the error at the deadline."""

    WRITING = "writing"  # each process writes its part of the arrays
    FINISHING = "finishing the arrays"  # work of the primary; the others wait in this stage
    HASHING = "hashing"  # each process hashes its share of the files
    COMMITTING = "renaming the step"  # work of the primary; the others wait in this stage
    DURABLE = "done"
    FAILED = "failed"


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

    def __init__(self, step: int, number: int, topic: str, folder: Path, size: int, name: str = ""):
        self.step, self.number, self.topic = step, number, topic  # number: counts the saves of this saver from 1
        self.name = name or str(step)  # of the folder at the end
        self.frozen: Frozen | None = None  # the frozen parameters that it stores, or that its step refers to
        self.folder, self.size = folder, size  # size: bytes of the state
        self.started = time.monotonic()
        self.copied = threading.Event()  # set when this save no longer reads the arrays of the train state
        self.stage, self.failure = SaveStage.WRITING, ""  # only `advance` and `fail` change them, under the lock
        self._lock = threading.Lock()
        self._ended = threading.Event()

    @property
    def is_step(self) -> bool:
        """Whether it saves a step, not frozen parameters."""
        return self.name == str(self.step)

    def refer_to(self, manifest: Manifest) -> None:
        """Completes `frozen` with the manifest of the folder that has just been written. The primary calls it.

        Raises:
            CheckpointError: frozen parameters have changed since they were saved.
        """
        frozen = self.frozen
        if frozen is None:
            return
        if not self.is_step:
            self.frozen = dataclasses.replace(frozen, hash=manifest.hash, digests=dict(manifest.arrays))
        elif changed := frozen.changed(manifest.arrays):
            raise CheckpointError(
                f"{len(changed)} frozen parameters, such as {changed[0]}, differ from those that {frozen.folder} has, "
                "but no step changes them. Look for a hook or a device that does, and restart the run"
            )

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
