"""The checkpoints of one run on disk: lists steps, restores them onto any mesh, removes them.

A step is the directory `<checkpoints>/<step>/` with `state` (arrays), `position` (in the data), `config` (text) and the
manifest. A save renames the complete directory into place: then the step is *durable*, and only durable steps are
listed. Every wait for a disk has a timeout.
"""

import contextlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.checkpoint import arrays, timeouts
from engine.checkpoint.arrays import error_text, reraise
from engine.checkpoint.integrity import (
    DamagedCheckpoint,
    VerifyTimeout,
    compare_arrays,
    list_set_aside,
    set_aside,
    shorten,
    step_folders,
    verify,
)
from engine.checkpoint.manifest import MANIFEST, delete_lock, files_of, read_lock
from engine.checkpoint.policy import read_results
from engine.checkpoint.tree_compat import difference, leaves_of, other_folds, with_stored_folds, with_wanted_folds
from engine.cluster import group
from engine.cluster.exit_status import ExitStatus
from engine.cluster.peer_failure import LostPeer
from engine.config.errors import CheckpointError
from engine.run import storage
from engine.run.lease import Lease
from engine.types import PyTree

STATE, POSITION, CONFIG = "state", "position/position.json", "config/config.json"
SAVING, DELETED = ".saving", ".deleted"  # suffixes of directories that are being saved or deleted
_LEFTOVERS = (f"*{DELETED}", f"*{SAVING}", "*.orbax-checkpoint-tmp")  # of a killed save or deletion


class StorageError(CheckpointError):
    """A step could not be written or read because the storage failed; a restart may succeed."""

    exit_code = ExitStatus.RETRY


class NoUsableCheckpoint(CheckpointError):
    """Every checkpoint of the run is damaged. The user decides whether to start over."""

    exit_code = ExitStatus.STOP
    everywhere = True


@dataclass(frozen=True)
class StepInfo:
    """One durable step: its size in bytes, when it was made durable (seconds since 1970), and its evaluations."""

    step: int
    bytes: int
    time: float
    results: Mapping[str, float]


class CheckpointStore:
    """The steps of a run.

    Args:
        directory: of the step directories.
        lease: of the run directory, to remove steps; None opens the store read-only.
        timeout_s: seconds that a restore may take.

    Raises:
        CheckpointError: the directory cannot be created or read.
        StorageError: the storage does not answer.

    One writer at a time. With several processes, all must call `restore` for the same steps.
    """

    def __init__(
        self, directory: str | os.PathLike[str], lease: Lease | None = None, *, timeout_s: float = timeouts.SAVE_S
    ):
        self.directory, self.timeout_s = Path(directory).absolute(), timeout_s
        self.current: set[int] = set()  # steps on disk that are identical to what this run would save
        self._lease = lease
        self._seen: list[int] = []  # the durable steps, as last listed
        self._deleting: dict[Path, storage.Background] = {}  # step directory -> its deletion
        self._deletions = itertools.count(1)
        if lease is not None:
            self._open(lease)

    def _open(self, lease: Lease) -> None:
        """Checks in every process that the directory is writable; the primary removes leftovers."""
        try:
            storage.probe(self.directory)
            leftovers = storage.bounded(
                lambda: [path for pattern in _LEFTOVERS for path in self.directory.glob(pattern)], timeouts.LIST_S
            )
        except storage.StorageTimeout as error:
            raise self._timed_out(error) from error
        except OSError as error:
            raise CheckpointError(
                f"{self.directory}: cannot be opened for writing ({error.strerror or error}). Allow writing there, or "
                "choose another directory with --workdir=DIR."
            ) from error
        if leftovers and group.is_primary():
            with lease.writing():
                for path in leftovers:
                    self._deleting[path] = storage.Background(lambda path=path: shutil.rmtree(path), "leftover")

    # Lists

    def steps(self) -> list[int]:
        """Returns the durable steps, oldest first; if the disk hangs, the last known list. Needs no JAX."""

        def durable() -> list[int]:
            return [int(path.name) for path in self._folders() if (path / MANIFEST).is_file()]

        with contextlib.suppress(storage.StorageTimeout):
            self._seen = storage.bounded(durable, timeouts.LIST_S)
        return list(self._seen)

    def latest(self) -> int | None:
        """Returns the newest durable step, or None."""
        return max(self.steps(), default=None)

    def candidates(self) -> list[int]:
        """Returns all steps, newest first, including those that have lost their manifest.

        Raises:
            StorageError: the storage does not answer.
        """
        try:
            return storage.bounded(lambda: [int(path.name) for path in reversed(self._folders())], timeouts.LIST_S)
        except storage.StorageTimeout as error:
            raise self._timed_out(error) from error

    def describe(self) -> list[StepInfo]:
        """Returns size, time and evaluation results of each durable step, oldest first. Needs no JAX."""
        results = read_results(self.directory)
        infos = []
        for step in self.steps():
            path = self.directory / str(step)
            size = sum(files_of(path).values())
            infos.append(StepInfo(step, size, (path / MANIFEST).stat().st_mtime, results.get(step, {})))
        return infos

    def _folders(self) -> list[Path]:
        deleting = {path for path, deletion in self._deleting.items() if not deletion.done}
        return [path for path in step_folders(self.directory) if path not in deleting]

    # Restores

    def restore_latest(
        self,
        abstract_state: PyTree,
        stacked: Mapping[str, int] | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> tuple[PyTree, int] | None:
        """Returns the state and the step of the newest good checkpoint, or None if the run has no checkpoints.

        Damaged steps are set aside. All processes call this, and get the same step.

        Args:
            abstract_state, stacked: as for `restore`.
            say: called with a sentence for each damaged step.

        Raises:
            NoUsableCheckpoint: every checkpoint is damaged.
            CheckpointError: a checkpoint cannot be read because of the disk, or belongs to another model.
        """
        lease = self.writable("set a damaged step aside")
        for step in group.run_on_primary(self.candidates, "the list of checkpoints"):
            try:
                return self.restore(step, abstract_state, stacked), step
            except DamagedCheckpoint as damaged:
                path, problems = self.directory / str(step), damaged.problems
                name = group.run_on_primary(lambda: set_aside(path, problems, lease), "the damaged checkpoint")  # noqa: B023
                say(
                    f"warning: the checkpoint of step {step} is damaged and set aside as {self.directory / name}: "
                    f"{shorten(problems)}"
                )
        bad = group.run_on_primary(lambda: list_set_aside(self.directory), "the list of damaged checkpoints")
        if bad:
            raise NoUsableCheckpoint(
                f"{self.directory}: no checkpoint can be used:\n"
                + "".join(f"  {name}: {why}\n" for name, why in bad)
                + "Restore one of them from a backup, with its step number as its name, or start over with --fresh "
                "(the old run is moved aside)."
            )
        return None

    def restore(self, step: int, abstract_state: PyTree, stacked: Mapping[str, int] | None = None) -> PyTree:
        """Returns the state of a step with the requested shardings, saved from any mesh. Every bit is verified.

        Args:
            step: one of `candidates`.
            abstract_state: the state as jax.ShapeDtypeStruct with shardings.
            stacked: path of each parameter of a stack of layers -> number of its leading dimensions that index the
                layers; it may have been saved with another number of them.

        Raises:
            CheckpointError: the step does not exist, cannot be read, or belongs to another model: the text names the
                leaves that differ.
            DamagedCheckpoint: the step differs from what was saved; raised in every process.
            StorageError: it takes longer than the timeout, in this or another process, which is named.
        """
        self.current.discard(step)
        if step not in self.candidates():
            self._require(step)
        end = time.monotonic() + self.timeout_s
        try:
            state = storage.bounded(
                lambda: self._verified(step, abstract_state, stacked or {}), self.timeout_s, "restore"
            )
            missing = group.barrier("restore", max(1.0, end - time.monotonic()))
        except storage.StorageTimeout as error:
            raise self._too_late(step, [group.index()]) from error
        except VerifyTimeout as error:
            raise self._too_late(step, [error.process]) from error
        except LostPeer as error:
            raise self._too_late(step, [0]) from error
        if missing:
            raise self._too_late(step, missing)
        self.current.add(step)
        return state

    def _verified(self, step: int, abstract_state: PyTree, stacked: Mapping[str, int]) -> PyTree:
        """Returns the state of a step, verified before and after it is read."""
        from engine.parallel.digest import Digests  # loads JAX

        path = self.directory / str(step)
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(FileNotFoundError):  # `verify` reports a missing manifest
                stack.enter_context(read_lock(path))
            manifest = verify(path, timeouts.VERIFY_SHARE * self.timeout_s)
            state = self._read(step, abstract_state, stacked)
            compare_arrays(path, manifest, Digests(state).of(state))
        return state

    def _read(self, step: int, abstract_state: PyTree, stacked: Mapping[str, int]) -> PyTree:
        folder = self.directory / str(step) / STATE
        with reraise(lambda text: self._unreadable(step, text)):
            stored = leaves_of(arrays.describe(folder))
        wanted = leaves_of(abstract_state)
        folds = other_folds(stored, wanted, stacked)
        if differing := difference(stored | {path: wanted[path] for path in folds}, wanted):
            raise CheckpointError(
                f"{self.directory / str(step)} is not a checkpoint of this model:\n{differing}\n"
                "Use the config and the code that it was saved with (its folder has the config), start over with "
                "--fresh, or start a run in another --workdir with the weights that fit: "
                f"--config.init.checkpoint={self.directory.parent} and init.paths."
            )
        with reraise(lambda text: self._unreadable(step, text)):
            state = arrays.read(folder, with_stored_folds(abstract_state, stored, folds))
        return with_wanted_folds(state, abstract_state, folds)

    def position(self, step: int) -> dict:
        """Returns the position in the data that was saved with a step. Needs no JAX. Raises CheckpointError."""
        return self._read_json(step, POSITION)

    def config_text(self, step: int) -> str:
        """Returns the config that a step was saved with. Needs no JAX. Raises CheckpointError."""
        return "\n".join(self._read_json(step, CONFIG)["lines"])

    def _read_json(self, step: int, name: str) -> dict:
        self._require(step)
        path = self.directory / str(step) / name
        try:
            return json.loads(storage.bounded(path.read_text, self.timeout_s))
        except (OSError, ValueError) as error:
            raise CheckpointError(self._unreadable(step, f"{name}: {error}")) from error

    # Changes

    def saved(self, step: int) -> None:
        """Records that this run has made a step durable."""
        self.current.add(step)
        self._seen = sorted({*self._seen, step})

    def delete(self, step: int) -> None:
        """Removes a durable step. It disappears from the list at once; a thread removes its files.

        A step that another process is reading is kept and listed again.

        Raises:
            CheckpointError: the step does not exist.
        """
        lease = self.writable("delete")
        self.current.discard(step)
        if not group.is_primary():
            return
        self._require(step)
        path = self.directory / str(step)
        gone = self.directory / f"{step}.d{next(self._deletions)}{DELETED}"

        def remove() -> None:
            with delete_lock(path) as free:
                if not free:
                    return
                with lease.writing():
                    path.rename(gone)
            shutil.rmtree(gone)

        self._seen.remove(step)
        self._deleting[path] = storage.Background(remove, f"delete-{step}")

    def end_deletion(self, step: int) -> None:
        """Waits for the deletion of a step that is about to be saved again."""
        if (deletion := self._deleting.pop(self.directory / str(step), None)) is not None:
            with contextlib.suppress(Exception):  # the save replaces the step even if the deletion has failed
                deletion.result(self.timeout_s)

    @property
    def has_events(self) -> bool:
        """Whether a deletion has ended that `failed_deletions` has not reported; touches no storage."""
        return any(deletion.done for deletion in self._deleting.values())

    def failed_deletions(self, timeout_s: float = 0.0) -> list[str]:
        """Returns, once, a sentence for each deletion that has failed.

        Args:
            timeout_s: seconds to wait for each deletion in flight. The next writer completes unfinished deletions.
        """
        texts = []
        for path, deletion in list(self._deleting.items()):
            try:
                deletion.result(timeout_s)
            except storage.StorageTimeout:
                continue
            except Exception as error:
                texts.append(f"{path}: an old checkpoint cannot be removed ({error_text(error)}).")
            del self._deleting[path]
        return texts

    # Messages

    def newest_except(self, step: int) -> str:
        """Returns a sentence about the newest step other than `step`; touches no storage."""
        newest = max((seen for seen in self._seen if seen != step), default=None)
        return "No checkpoint exists yet" if newest is None else f"The newest checkpoint is that of step {newest}"

    def _timed_out(self, error: storage.StorageTimeout) -> StorageError:
        return StorageError(
            f"{self.directory}: the storage does not answer ({error}). Check that it is mounted and not overloaded, "
            "then start the same command again."
        )

    def _too_late(self, step: int, missing: list[int]) -> StorageError:
        who = ", ".join(f"process {index}" for index in missing)
        return StorageError(
            f"{self.directory / str(step)}: not restored within checkpoint.timeout, {self.timeout_s:g} s: {who} "
            "did not finish. Check that the storage answers there, then start the same command again."
        )

    def _unreadable(self, step: int, text: str) -> str:
        others = ", ".join(str(other) for other in self.steps() if other != step) or "none"
        return (
            f"{self.directory / str(step)}: cannot be read ({text}). Other checkpoints there: {others}. "
            f"Move {step} elsewhere to resume from the newest of them."
        )

    def _require(self, step: int) -> None:
        if step not in (steps := self.steps()):
            raise CheckpointError(
                f"{self.directory}: there is no checkpoint of step {step}. "
                f"Existing steps: {', '.join(map(str, steps)) or 'none'}."
            )

    def writable(self, verb: str) -> Lease:
        """Returns the lease, which `verb` needs. Raises CheckpointError if the store is read-only."""
        if self._lease is None:
            raise CheckpointError(f"{self.directory}: opened read-only, cannot {verb}. Open it with its lease.")
        return self._lease
