"""The checkpoints of one run on disk: lists, restores and deletes them. `async_save.py` writes them.

In this package, a *step* is also the directory `<checkpoints>/<step>/` of a checkpoint, with `state` (arrays),
`position` (in the data), `config` (text) and the manifest. A save writes to a temporary directory and renames it when
it is complete. A step is *durable* if it has this name and its manifest. Listing and restoring have timeouts.
"""

import contextlib
import itertools
import math
import os
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.base.errors import CheckpointError
from engine.base.types import PyTree
from engine.checkpoint import arrays, timeouts
from engine.checkpoint.integrity import (
    DamagedCheckpoint,
    NoUsableCheckpoint,
    VerifyTimeout,
    compare_arrays,
    list_set_aside,
    set_aside,
    shorten,
    step_folders,
    verify,
)
from engine.checkpoint.manifest import (
    CONFIG,
    DELETED,
    MANIFEST,
    POSITION,
    SAVING,
    delete_lock,
    read_lock,
    saved_at,
    size_of,
)
from engine.checkpoint.policy import read_results
from engine.cluster import group
from engine.cluster.exit_status import ExitStatus
from engine.cluster.peer_failure import LostPeer
from engine.run.lease import Lease
from engine.storage import background
from engine.storage.mounts import address_of_copy
from engine.storage.plain_path import plain_path

if TYPE_CHECKING:
    from engine.checkpoint.frozen import Frozen
    from engine.checkpoint.tree_compat import Partial

_LEFTOVERS = (f"*{DELETED}", f"*{SAVING}", "*.orbax-checkpoint-tmp")  # from a killed save or deletion


class StorageError(CheckpointError):
    """The storage failed while a step was written or read. A restart of the run may succeed."""

    exit_code = ExitStatus.RETRY


@dataclass(frozen=True)
class StepInfo:
    """One step: size in bytes, time of the save (seconds since 1970), and evaluation results.

    In a bucket that is read without a mount, the time is NaN, and sizes of files are not compared with the manifest.
    If they differ, or the manifest is damaged or of a newer version of Convoy, `error` says so, and the size is 0.
    """

    step: int
    bytes: int
    time: float
    results: Mapping[str, float]
    error: CheckpointError | None = None


class CheckpointStore:
    """The checkpoints of a run.

    Only one job may open the store of a run for writing. All processes of the job must call `restore` and
    `restore_latest` in the same order and for the same steps.

    Args:
        directory: folder of the step directories.
        lease: lease of the run directory, required to delete or rename steps; None opens the store read-only.
        timeout_s: seconds that a restore may take.

    Raises:
        CheckpointError: the directory cannot be created or read.
        StorageError: the storage does not answer.
    """

    def __init__(
        self, directory: str | os.PathLike[str], lease: Lease | None = None, *, timeout_s: float = timeouts.SAVE_S
    ):
        self.directory, self.timeout_s = Path(directory).absolute(), timeout_s
        # Steps that this run has saved or restored: saving them again would write identical files.
        self.current: set[int] = set()
        # Frozen parameters on disk, which are those of the restored state, and to which a save refers.
        self.frozen: Frozen | None = None
        self._lease = lease
        self._listed: list[int] = []  # the latest known list of durable steps
        self._deleting: dict[Path, background.Background] = {}  # step directory -> its deletion
        self._deletion_numbers = itertools.count(1)
        if lease is not None:
            self._open(lease)

    def _open(self, lease: Lease) -> None:
        """Checks that the directory is writable. The primary also removes what killed saves and deletions left."""
        try:
            background.probe(self.directory)
            leftovers = background.bounded(self._leftovers, timeouts.LIST_S)
        except background.StorageTimeout as error:
            raise self._timed_out(error) from error
        except OSError as error:
            raise CheckpointError(
                f"{self.directory}: cannot be opened for writing ({error.strerror or error}). Allow writing there, or "
                "choose another directory with --workdir=DIR."
            ) from error
        with lease.writing() if leftovers else contextlib.nullcontext():
            for path in leftovers:
                self._deleting[path] = background.Background(lambda path=path: shutil.rmtree(path), "leftover")

    def _leftovers(self) -> list[Path]:
        """Returns, on the primary, what killed saves left. Raises OSError if Orbax cannot use the path."""
        with plain_path(self.directory):
            return [p for name in _LEFTOVERS for p in self.directory.glob(name)] if group.is_primary() else []

    def steps(self) -> list[int]:
        """Returns the durable steps, oldest first; if the storage hangs, the latest known list. Does not import JAX."""

        def durable() -> list[int]:
            return [int(path.name) for path in self._folders() if (path / MANIFEST).is_file()]

        with contextlib.suppress(background.StorageTimeout):
            self._listed = background.bounded(durable, timeouts.LIST_S)
        return list(self._listed)

    def latest(self) -> int | None:
        """Returns the newest durable step, or None."""
        return max(self.steps(), default=None)

    def candidates(self) -> list[int]:
        """Returns all steps, newest first, including damaged steps without a manifest.

        Raises:
            StorageError: the storage does not answer.
        """
        try:
            return background.bounded(lambda: [int(path.name) for path in reversed(self._folders())], timeouts.LIST_S)
        except background.StorageTimeout as error:
            raise self._timed_out(error) from error

    def describe(self) -> list[StepInfo]:
        """Returns size, time and results of each step, oldest first, also of damaged ones. Does not import JAX."""
        from engine.checkpoint.frozen import damage_of

        results, infos = read_results(self.directory), []
        for path in background.bounded(self._folders, timeouts.LIST_S):
            copied = address_of_copy(path) is not None
            with contextlib.suppress(FileNotFoundError):  # the run deletes the step at this moment
                when, (size, error) = math.nan if copied else saved_at(path), size_of(path, copied)
                error = error or (None if copied else damage_of(path))
                step = int(path.name)
                infos.append(StepInfo(step, 0 if error else size, when, results.get(step, {}), error))
        return infos

    def _folders(self) -> list[Path]:
        """Returns the step directories, oldest first, without those whose deletion is in progress."""
        deleting = {path for path, deletion in self._deleting.items() if not deletion.done}
        return [path for path in step_folders(self.directory) if path not in deleting]

    def restore_latest(
        self,
        abstract_state: PyTree | Callable[[int], PyTree],
        stacked: Mapping[str, int] | None = None,
        say: Callable[[str], None] = lambda text: None,
        partial: "Partial" = None,
    ) -> tuple[PyTree, int] | None:
        """Returns the state and the step of the newest undamaged checkpoint, or None if the run has no checkpoints.

        Renames each newer, damaged step (`integrity.set_aside`). Every process calls it, and restores the same step.

        Args:
            abstract_state, stacked, partial: as for `restore`; or a function that returns the state of a step.
            say: called with a warning for each damaged step.

        Raises:
            NoUsableCheckpoint: every checkpoint is damaged.
            CheckpointError: the store is read-only, or a checkpoint cannot be read or belongs to another model.
        """
        lease, self.frozen = self.writable("set a damaged step aside"), None
        for step in group.run_on_primary(self.candidates, "the list of checkpoints"):
            wanted = abstract_state(step) if callable(abstract_state) else abstract_state
            try:
                return self.restore(step, wanted, stacked, partial), step
            except DamagedCheckpoint as damaged:
                path, problems = self.directory / str(step), damaged.problems
                name = group.run_on_primary(lambda: set_aside(path, problems, lease), "the damaged checkpoint")  # noqa: B023
                say(
                    f"warning: the checkpoint of step {step} is damaged and set aside as {self.directory / name}: "
                    f"{shorten(problems)}"
                )
        if bad := group.run_on_primary(lambda: list_set_aside(self.directory), "the list of damaged checkpoints"):
            raise NoUsableCheckpoint(
                f"{self.directory}: no checkpoint can be used:\n"
                + "".join(f"  {name}: {why}\n" for name, why in bad)
                + "Restore one of them from a backup, with its step number as its name, or start over with --fresh "
                "(the old run is moved aside)."
            )
        return None

    def restore(
        self, step: int, abstract_state: PyTree, stacked: Mapping[str, int] | None = None, partial: "Partial" = None
    ) -> PyTree:
        """Returns the state of a step with the requested shardings.

        The state may have been saved on another mesh. The hash of every file and the digest of every array are
        compared with the manifest. Every process must call this method.

        Args:
            step: one of `candidates`.
            abstract_state: the state as jax.ShapeDtypeStruct with shardings.
            stacked: path of each stacked parameter -> number of its leading dimensions that index the layers. The
                stored parameter may have another number of such dimensions.
            partial: see `tree_compat.Partial`.

        Raises:
            CheckpointError: the step does not exist, cannot be read, or belongs to another model. In the last case the
                text names the leaves that differ.
            DamagedCheckpoint: the files or arrays differ from the manifest. Every process raises it.
            StorageError: a process has not restored the step within the timeout. The text names the process.
        """
        self.current.discard(step)
        if step not in self.candidates():
            self._require(step)
        deadline = time.monotonic() + self.timeout_s
        try:
            state = background.bounded(
                lambda: self._verified(step, abstract_state, stacked or {}, partial), self.timeout_s, "restore"
            )
            missing = group.barrier("restore", max(1.0, deadline - time.monotonic()))
        except background.StorageTimeout as error:
            raise self._too_late(step, [group.index()]) from error
        except VerifyTimeout as error:
            raise self._too_late(step, [error.process]) from error
        except LostPeer as error:  # a barrier raises it only if process 0 does not answer
            raise self._too_late(step, [0]) from error
        if missing:
            raise self._too_late(step, missing)
        self.current.add(step)
        return state

    def _verified(self, step: int, abstract_state: PyTree, stacked: Mapping[str, int], partial: "Partial") -> PyTree:
        """Returns the state of a step. Verifies its files before the read, and the arrays after the read."""
        from engine.checkpoint import restoring
        from engine.parallel.digest import Digests  # imports JAX

        path, share_s = self.directory / str(step), timeouts.VERIFY_SHARE * self.timeout_s
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(FileNotFoundError):  # `verify` reports a missing manifest
                stack.enter_context(read_lock(path))
            manifest = verify(path, share_s)
            frozen = restoring.verified_frozen(path, manifest, share_s)
            state = restoring.read_state(
                path, frozen, abstract_state, stacked, partial, lambda text: self._unreadable(step, text)
            )
            compare_arrays(path, manifest, Digests(state).of(state))
        self.frozen = frozen
        return state

    def keep_frozen(self, constant: Collection[str]) -> None:
        """Forgets the frozen parameters of the restored step, unless they are those that this run never changes."""
        if self.frozen is not None and set(self.frozen.paths) != set(constant):
            self.frozen = None

    def position(self, step: int) -> dict:
        """Returns the position in the data that was saved with a step. Does not import JAX. Raises CheckpointError."""
        from engine.checkpoint import stored_json

        return self._read_file(step, POSITION, stored_json.position)

    def config_text(self, step: int) -> str:
        """Returns the config that was saved with a step. Does not import JAX. Raises CheckpointError."""
        from engine.checkpoint import stored_json

        return self._read_file(step, CONFIG, stored_json.config_text)

    def _read_file[T](self, step: int, name: str, read: Callable[[Path], T]) -> T:
        self._require(step)
        try:
            return background.bounded(lambda: read(self.directory / str(step) / name), self.timeout_s)
        except (OSError, ValueError) as error:
            raise CheckpointError(self._unreadable(step, f"{name}: {error}")) from error

    def saved(self, step: int) -> None:
        """Records that this run has made a step durable."""
        self.current.add(step)
        self._listed = sorted({*self._listed, step})

    def delete(self, step: int) -> None:
        """Deletes a durable step: the primary starts a thread that deletes the files; other processes do nothing.

        `steps` omits the step as soon as the deletion has started. If a process holds the read lock of the step, the
        step is kept, and `steps` lists it again.

        Raises:
            CheckpointError: the step does not exist.
        """
        lease = self.writable("delete")
        self.current.discard(step)
        if not group.is_primary():
            return
        self._require(step)
        path = self.directory / str(step)
        renamed = self.directory / f"{step}.d{next(self._deletion_numbers)}{DELETED}"

        def remove() -> None:
            with delete_lock(path) as locked:
                if not locked:
                    return
                with lease.writing():
                    path.rename(renamed)
            shutil.rmtree(renamed)

        self._listed.remove(step)
        self._deleting[path] = background.Background(remove, f"delete-{step}")

    def end_deletion(self, step: int) -> None:
        """Waits for the deletion of a step, if one is in progress, so that the step can be saved again."""
        if (deletion := self._deleting.pop(self.directory / str(step), None)) is not None:
            with contextlib.suppress(Exception):  # the save replaces the step even if the deletion has failed
                deletion.result(self.timeout_s)

    @property
    def has_events(self) -> bool:
        """Whether a deletion has ended since the last call of `failed_deletions`. Does not access the storage."""
        return any(deletion.done for deletion in self._deleting.values())

    def failed_deletions(self, timeout_s: float = 0.0) -> list[str]:
        """Returns a sentence for each deletion that has failed since the last call.

        Deletions that are interrupted by the end of the process are completed when the store is next opened for
        writing.

        Args:
            timeout_s: seconds to wait for each deletion in progress.
        """
        texts = []
        for path, deletion in list(self._deleting.items()):
            try:
                deletion.result(timeout_s)
            except background.StorageTimeout:
                continue
            except Exception as error:
                texts.append(f"{path}: an old checkpoint cannot be removed ({arrays.error_text(error)}).")
            del self._deleting[path]
        return texts

    def newest_except(self, step: int) -> str:
        """Returns a phrase about the newest durable step other than `step`. Does not access the storage."""
        newest = max((listed for listed in self._listed if listed != step), default=None)
        return "No checkpoint exists yet" if newest is None else f"The newest checkpoint is that of step {newest}"

    def _timed_out(self, error: background.StorageTimeout) -> StorageError:
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
        """Returns the lease. Raises CheckpointError if the store is read-only; the text says "cannot `verb`"."""
        if self._lease is None:
            raise CheckpointError(f"{self.directory}: opened read-only, cannot {verb}. Open it with its lease.")
        return self._lease
