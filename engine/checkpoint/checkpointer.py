"""The checkpoints of a run as the loop uses them: saves by a policy, removal by a retention.

The loop waits only for saves that must not be skipped: the last step, a preemption, a best evaluation. Any other step
that is due while a save is in flight is skipped: on slow storage a queue of saves would grow without limit, each with a
whole state in memory.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from engine.base.duration import RunSize
from engine.base.errors import RunError
from engine.base.types import Json, PyTree
from engine.checkpoint import timeouts
from engine.checkpoint.async_save import Saver
from engine.checkpoint.integrity import missing_files, shorten
from engine.checkpoint.manifest import FROZEN
from engine.checkpoint.policy import Retention, SavePolicy
from engine.checkpoint.store import CheckpointStore, StorageError
from engine.cluster import group
from engine.config.schema import Checkpoint
from engine.run.directory import RunDirectory
from engine.storage import background

_RESTART = "fix the storage, then start the same command again; it resumes from there."


class Checkpointer:
    """Saves, lists and restores the steps of a run. A context manager: its exit waits until no save is in flight.

    Args:
        store: the steps on disk, opened for writing.
        policy: which steps are due.
        retention: which steps stay.
        config_text: the resolved config, stored with each step.
        on_failure: "continue" keeps training after a failed save, "stop" raises.
        say: called with sentences for the user.

    Attributes:
        store: the steps on disk, to list and restore.
        skipped: number of saves that were due while another was in flight.
    """

    def __init__(
        self,
        store: CheckpointStore,
        policy: SavePolicy,
        retention: Retention,
        config_text: str,
        *,
        on_failure: str = "continue",
        say: Callable[[str], None] = lambda text: None,
    ):
        self.store, self.policy, self.retention, self.skipped = store, policy, retention, 0
        self._config_text, self._on_failure, self._say = config_text, on_failure, say
        self._lease = store.writable("save")
        self._saver = Saver(store.directory, store.timeout_s, self._lease)
        self._failure: StorageError | None = None  # error of the latest save that has ended

    def prepare(self, step: int, state: Mapping[str, PyTree], constant: Sequence[str] = ()) -> None:
        """Compiles the computations of a save, so that the first save is as fast as later saves.

        It also starts to save the parameters that no later save has to store. If that fails, steps have all parameters.

        Args:
            step: steps done.
            state: pytree of arrays.
            constant: paths of the parameters that no step of the run changes.
        """
        self._saver.prepare(state)
        if not constant or self.store.frozen is not None:
            return
        from engine.checkpoint import frozen

        if frozen.worth_it(state, constant):
            self._saver.free(wait=True)
            self.poll()
            with self._lease.writing():
                self._saver.save_frozen(step, state, sorted(constant))

    def maybe_save(self, step: int, state: PyTree, position: Mapping[str, Json], force: bool = False) -> bool:
        """Starts a save if one is due or forced; returns whether it did. All processes call it at the same steps.

        A step that this run has saved or restored before is not written again: it would be identical.

        Args:
            step: steps done.
            state: pytree of arrays.
            position: in the data.
            force: save even if no save is due, and wait for a save in flight.

        Raises:
            LeaseLost: another job has taken over the run.
            StorageError: an earlier save has failed, and on_failure is "stop".
        """
        self.poll()
        due = self.policy.due(step)
        if not (due or force):
            return False
        if not self._saver.free(wait=force):
            self.skipped += 1
            self._say(
                f"warning: step {step} is not saved, since {self._saver.describe()} is still being written: the "
                f"storage is slower than checkpoint.every. Saves skipped so far: {self.skipped}."
            )
            return False
        self.poll()
        if step in self.store.current:
            return False
        with self._lease.writing():
            self.store.end_deletion(step)
            self._saver.save(step, state, position, self._config_text, self.store.frozen)
        return True

    def record(self, step: int, results: Mapping[str, float]) -> None:
        """Writes evaluation results of a step, for retention and for the list of checkpoints.

        If they cannot be written, they are written together with the next results.
        """
        with self._lease.writing():
            try:
                self.retention.record(step, results)
            except RunError as error:
                self._say(f"warning: {error}")

    def results(self, step: int) -> Mapping[str, float]:
        """Returns the evaluation results of a step, from this attempt or an earlier one."""
        return self.retention.results(step)

    @property
    def has_events(self) -> bool:
        """Whether `poll` has work to do; touches no storage."""
        return self._saver.has_events or self.store.has_events

    def poll(self) -> None:
        """Handles a save that has ended since the last call: removes older steps, or reports the failure.

        Raises:
            StorageError: the save has failed, and on_failure is "stop".
        """
        if (failed := self._collect()) is None:
            return
        if self._on_failure == "stop":
            raise StorageError(f"{failed} This run stops because of checkpoint.on_failure=stop: {_RESTART}") from failed
        self._say(f"warning: {failed} Training continues, and the next save is tried when it is due.")

    def settle(self) -> None:
        """Waits until no save is in flight, then polls."""
        self._saver.wait()
        self.poll()

    def finish(self) -> None:
        """Waits until the last save is durable, then removes steps that need not stay.

        Raises:
            StorageError: the save has failed, for any on_failure, or its files were removed: the last state of the run
                is not on disk.
        """
        self._saver.wait()
        if (failed := self._collect() or self._failure) is not None:
            error = StorageError(f"{failed} It was the last save of this attempt: {_RESTART}")
            error.everywhere = True  # every process raises it here
            raise error
        timeout_s = self.store.timeout_s + timeouts.VERDICT_S
        group.run_on_primary(self._check_newest, "the last save", timeout_s)

    def _check_newest(self) -> None:
        """Raises StorageError if the newest checkpoint of this run is no longer readable."""
        step = max(self.store.current, default=None)
        if step is None:
            return
        path = self.store.directory / str(step)
        try:
            problems = background.bounded(lambda: self._missing(path), self.store.timeout_s)
        except background.StorageTimeout as error:
            problems = [str(error)]
        if problems:
            self._lease.verify()
            raise StorageError(
                f"{path}: the newest checkpoint was removed or changed while the run trained: {shorten(problems)}. "
                "Start the same command again: it resumes from the newest intact checkpoint, or from the beginning."
            )

    def _missing(self, path: Path) -> list[str]:
        """Returns a sentence for each file of a step, or of its frozen parameters, that is not as it was saved."""
        problems = missing_files(path)
        if problems or not (path / FROZEN).exists():
            return problems
        from engine.checkpoint import frozen

        if damage := frozen.damage_of(path):
            return damage.problems
        found = frozen.find(path)
        return [] if found is None else missing_files(path.parent / found.folder)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        # The save in flight needs all processes: after an error of this process alone, the others may never finish it.
        alone = error is not None and group.count() > 1 and not getattr(error, "everywhere", False)
        self._saver.wait(timeouts.ALONE_S if alone else None)
        self.store.failed_deletions(timeouts.DELETE_S)

    def _collect(self) -> StorageError | None:
        """Handles a save that has ended: removes old steps after a success; returns a failure, once."""
        save = self._saver.poll()
        if save is not None and save.failure:
            self._lease.verify()  # a directory that was moved or removed is the better reason
            newest = self.store.newest_except(save.step)
            if not save.is_step:
                self._say(
                    f"warning: {self.store.directory}: the frozen parameters could not be saved ({save.failure}). Each "
                    "checkpoint of this attempt has them."
                )
                return None
            sentence = f"{self.store.directory}: step {save.step} could not be saved ({save.failure}). {newest}."
            self._failure = StorageError(sentence)
            return self._failure
        if save is not None and not save.is_step:
            self.store.frozen = save.frozen
        elif save is not None:
            self._failure = None
            self.store.saved(save.step)
            with self._lease.writing():
                with contextlib.suppress(RunError):  # `record` has reported it
                    self.retention.flush()
                for step in self.retention.to_delete(self.store.steps()):
                    self.store.delete(step)
        for text in self.store.failed_deletions():
            self._say(f"warning: {text}")
        return None


def build_checkpointer(
    checkpoint: Checkpoint, config_text: str, directory: RunDirectory, size: RunSize, say: Callable[[str], None]
) -> Checkpointer:
    """Returns the checkpointer of an attempt; `config_text` is stored with each checkpoint."""
    path, lease = directory.checkpoints, directory.lease
    return Checkpointer(
        CheckpointStore(path, lease, timeout_s=checkpoint.timeout.seconds),
        SavePolicy(checkpoint.every, size.batch_size, size.dataset_size, size.total_steps),
        Retention(path, checkpoint.keep_latest, checkpoint.best, checkpoint.best_mode, checkpoint.keep_best, lease),
        config_text,
        on_failure=checkpoint.on_failure,
        say=say,
    )
