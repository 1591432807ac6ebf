"""When the loop saves, and what stays: the store, the policy and the retention behind one method.

Owns: the order (a step is saved once, older ones go only after it is durable), and what a failed or a slow save means
for the run. Does not own: how a step is written (`saving.py`), when it is due (`policy.py`), or which one is kept
(`retention.py`).

The loop never waits for a save, but for one that must not be left out: the last step, a preemption, a best evaluation.
A step that is due while the one before is still being written is skipped: a queue of saves on slow storage would only
grow, each with a whole state in memory.
"""

import contextlib
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from engine.checkpoint.policy import SavePolicy
from engine.checkpoint.retention import Retention
from engine.checkpoint.store import CheckpointStore, StorageError
from engine.cluster import processes
from engine.config.errors import CheckpointError, RunError
from engine.config.schema import Config
from engine.config.text import to_text
from engine.run.directory import RunDirectory
from engine.run.lease import ALWAYS_GRANTED, Lease

_ALONE_S = 5.0  # for the save under way, when this process ends by an error of its own


class Checkpointer:
    """Saves by a policy and keeps by a retention.

    Args:
        store: where steps lie.
        policy: which steps are due.
        retention: which steps stay.
        config_text: the resolved config, stored with each step.
        on_failure: "continue" goes on training after a save that failed, "stop" raises.
        say: called with sentences for the user.
        lease: of the run directory.

    A context manager: it is left when nothing is under way, in bounded time.
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
        lease: Lease = ALWAYS_GRANTED,
    ):
        self.store, self.policy, self.retention = store, policy, retention
        self._config_text, self._on_failure, self._say, self._lease = config_text, on_failure, say, lease
        self._failure: StorageError | None = None  # of the newest save that has ended
        self.skipped = 0  # saves that were due while another one was under way

    def maybe_save(self, step: int, state: Any, position: Mapping[str, Any], force: bool = False) -> bool:
        """Starts a save when one is due or forced; returns whether it did. Asked at the same steps in every process.

        Args:
            step: steps done.
            state: pytree of arrays.
            position: where the data goes on.
            force: save also where none is due, and wait for the one before, if it is still under way.

        Raises:
            StorageError: an earlier save has failed, and on_failure is "stop".
        """
        self.look()
        due = self.policy.due(step)
        if not (due or force):
            return False
        if not self.store.free(wait=force):
            self.skipped += 1
            self._say(
                f"warning: step {step} is not saved, since step {self.store.under_way} is still being written: the "
                f"storage is slower than checkpoint.every. Saves skipped so far: {self.skipped}."
            )
            return False
        self.look()
        with self._lease.writing():
            return self.store.save(step, state, position, self._config_text)

    def record(self, step: int, results: Mapping[str, float]) -> None:
        """Writes evaluation results beside a step, for retention and for the list of checkpoints.

        On a disk that refuses them they wait for the next ones, with which they are written.
        """
        with self._lease.writing():
            try:
                self.retention.record(step, results)
            except RunError as error:
                self._say(f"warning: {error}")

    def results(self, step: int) -> Mapping[str, float]:
        """The evaluation results of a step, from this attempt or an earlier one."""
        return self.retention.results(step)

    def settle(self) -> None:
        """Waits until no save is under way, and takes in how it ended; raises like `look`."""
        self.look(wait=True)

    def finish(self) -> None:
        """Waits until the last save is durable, then drops what need not stay.

        Raises:
            StorageError: it has failed, whatever on_failure says: the state of the loop is not on disk.
        """
        if (failed := self._learn(wait=True) or self._failure) is not None:
            error = StorageError(
                f"{failed} It was the last save of this attempt: see to the storage, then start the same command "
                "again; it goes on from there."
            )
            error.everywhere = True  # every process comes here
            raise error

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        # The save under way needs all processes: after an error of this one alone they may never come.
        alone = error is not None and processes.count() > 1 and not getattr(error, "everywhere", False)
        with contextlib.suppress(CheckpointError):  # the loop's own error counts; without one, `finish` has told all
            self.store.close(_ALONE_S if alone else None)

    @property
    def has_news(self) -> bool:
        """Whether `look` has something to take in; asked again and again."""
        return self.store.has_news

    def look(self, wait: bool = False) -> None:
        """Takes in how a save has ended since the last look: older steps go after a success, a failure is told.

        Args:
            wait: for the end of the one under way.

        Raises:
            StorageError: it has failed, and on_failure is "stop".
        """
        if (failed := self._learn(wait)) is None:
            return
        if self._on_failure == "stop":
            raise StorageError(
                f"{failed} This run stops, by checkpoint.on_failure: see to the storage, then start the same command "
                "again; it goes on from there."
            ) from failed
        self._say(f"warning: {failed} Training goes on, and the next save is tried when it is due.")

    def _learn(self, wait: bool) -> StorageError | None:
        """Takes in how the newest save ended, if it has: drops old steps after a success, returns a failure, once.

        Args:
            wait: for its end.
        """
        try:
            saved = self.store.wait() if wait else self.store.check()
        except StorageError as error:
            self._failure = error
            return error
        if saved is not None:
            self._failure = None
            with self._lease.writing():
                with contextlib.suppress(RunError):  # was told
                    self.retention.flush()
                for step in self.retention.to_delete(self.store.steps()):
                    self.store.delete(step)
        for text in self.store.not_deleted():
            self._say(f"warning: {text}")
        return None


def build_checkpointer(
    config: Config, directory: RunDirectory, dataset_size: int, total_steps: int, say: Callable[[str], None]
) -> Checkpointer:
    """Returns the checkpointer of an attempt; `dataset_size` examples are an epoch."""
    checkpoint, path = config.checkpoint, directory.checkpoints

    return Checkpointer(
        CheckpointStore(path, timeout_s=checkpoint.timeout.seconds, lease=directory.lease),
        SavePolicy(checkpoint.every, config.train.global_batch_size, dataset_size, total_steps),
        Retention(path, checkpoint.keep_latest, checkpoint.best, checkpoint.best_mode, checkpoint.keep_best),
        to_text(config),
        on_failure=checkpoint.on_failure,
        say=say,
        lease=directory.lease,
    )
