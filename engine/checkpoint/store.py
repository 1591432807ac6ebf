"""The checkpoints of one run on disk: listed, restored onto any mesh, removed; what writes them is its `Saver`.

Owns: when a step counts, and the bounds of what is done with one. Does not own: how one is written and what its
directory holds (`saving.py`), in which format (`arrays.py`), when a save is due (`policy.py`), which steps stay
(`retention.py`), what is in the state (`training/state.py`).

Nothing here waits without a bound for a disk: what touches it runs in threads (`run/storage.py`).

Terms. *Step directory*: `<directory>/<step>/` with `state` (arrays), `position` (the next unread example), `config`
(the resolved config's text) and the manifest; all become visible together, by one rename. *Durable*: that rename is
done; only durable steps are listed, and none that has lost its manifest. *Candidate*: a step by its name alone.
*Leftover*: what a killed save or deletion leaves; never listed, removed when the next writer opens the directory.
"""

import contextlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint import arrays
from engine.checkpoint.arrays import failing
from engine.checkpoint.manifest import MANIFEST, files_of
from engine.checkpoint.read_lock import delete_lock, read_lock
from engine.checkpoint.retention import read_results
from engine.checkpoint.saving import CONFIG, DELETED, POSITION, SAVING, STATE, Saver
from engine.checkpoint.tree_compat import difference, leaves_of, other_folds, with_stored_folds, with_wanted_folds
from engine.checkpoint.verification import NotInTime, compare, verify
from engine.cluster import group, processes
from engine.cluster.exit_status import ExitStatus
from engine.config.errors import CheckpointError
from engine.run import storage
from engine.run.lease import ALWAYS_GRANTED, Lease

TIMEOUT_S = 600.0  # for a save or a restore, as checkpoint.timeout says too
LOOK_S = 10.0  # for looks at the directory
_LEFTOVERS = (f"*{DELETED}", f"*{SAVING}", "*.orbax-checkpoint-tmp")
_DELETION_S = 60.0  # for deletions under way, at the end; the next writer finishes them


class StorageError(CheckpointError):
    """A step could not be written or read, for which storage is to blame and not the run."""

    exit_code = ExitStatus.RETRY


@dataclass(frozen=True)
class StepInfo:
    """One durable step: its size in bytes, when it was made durable (seconds since 1970), and its evaluations."""

    step: int
    bytes: int
    time: float
    results: Mapping[str, float]


class CheckpointStore:
    """Saves and restores the state of a run.

    Args:
        directory: where the step directories lie; made if it is missing.
        read_only: look and restore only. Needs no write access and leaves what another process is writing alone.
        timeout_s: seconds that a save or a restore may take.
        lease: of the run directory.

    Raises:
        CheckpointError: the directory cannot be made or read.
        StorageError: it does not answer.

    One writer at a time. With several processes, all call `save`, `restore`, `wait` and `close` at the same steps.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        read_only: bool = False,
        timeout_s: float = TIMEOUT_S,
        lease: Lease = ALWAYS_GRANTED,
    ):
        self.directory, self._timeout_s = Path(directory).absolute(), timeout_s
        self._same: set[int] = set()  # steps on disk that hold what this run would save again
        self._seen: list[int] = []  # the durable steps, as of the last look
        self._deleting: dict[Path, storage.Background] = {}  # step directory -> its deletion
        self._deletions = itertools.count(1)
        self._saver: Saver | None = None
        if not read_only:
            self._open(lease)

    def _open(self, lease: Lease) -> None:
        """Finds the directory writable, in every process; the first one removes leftovers."""
        try:
            storage.probe(self.directory)
            leftovers = storage.bounded(
                lambda: [path for pattern in _LEFTOVERS for path in self.directory.glob(pattern)], LOOK_S
            )
        except storage.StorageTimeout as error:
            raise self._no_answer(error) from error
        except OSError as error:
            raise CheckpointError(
                f"{self.directory}: cannot be opened for writing ({error.strerror or error}). Allow writing there, or "
                "choose another place with --workdir=DIR."
            ) from error
        self._saver = Saver(self.directory, self._timeout_s, lease)
        if processes.is_primary():
            for path in leftovers:
                self._deleting[path] = storage.Background(lambda path=path: shutil.rmtree(path), "leftover")

    def prepare(self, state: Any) -> None:
        """Compiles what a save of such a state computes, so that the first one takes no longer than others."""
        self._writable("prepare").prepare(state)

    def free(self, wait: bool) -> bool:
        """Whether no save is under way, so that the next one may start; the same answer in every process.

        Args:
            wait: for the end of the one that is.
        """
        return self._writable("save").free(wait)

    @property
    def under_way(self) -> int | None:
        """The step of the save under way, or None."""
        return None if self._saver is None else self._saver.under_way

    def save(self, step: int, state: Any, position: Mapping[str, Any], config_text: str) -> bool:
        """Starts to save a step and returns; the state may be donated to the next call of the program at once.

        Args:
            step: name of the checkpoint.
            state: pytree of arrays.
            position: where the data goes on; plain JSON.
            config_text: the resolved config.

        Returns:
            False, and nothing is written, for a step that this run saved or restored before: it is the same. A step
            that lies there otherwise, from an attempt that this one did not go on from, is replaced.

        Raises:
            StorageError: an earlier save, which is waited for, has failed. What happens to this one, `check` tells.
        """
        saver = self._writable("save")
        self.wait()
        if step in self._same:
            return False
        if (deletion := self._deleting.pop(self.directory / str(step), None)) is not None:
            with contextlib.suppress(Exception):  # whatever became of it, this step is replaced
                deletion.result(self._timeout_s)
        saver.start(step, state, position, config_text)
        return True

    @property
    def has_news(self) -> bool:
        """Whether a save or a deletion has ended of which nobody was told; touches no storage."""
        saved = self._saver is not None and self._saver.has_ended
        return saved or any(deletion.done for deletion in self._deleting.values())

    def check(self) -> int | None:
        """Returns the step that has become durable since it was asked for, if one has; never waits.

        Raises:
            StorageError: the save has failed. It is told once; the next save starts anew.
        """
        if self._saver is None or (ended := self._saver.ended()) is None:
            return None
        if ended.failure:
            raise StorageError(self._not_saved(ended.step, ended.failure))
        self._same.add(ended.step)
        self._seen = sorted({*self._seen, ended.step})
        return ended.step

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Like `check`, when no save is under way any more, which has a bound.

        Args:
            timeout_s: a nearer bound.
        """
        if self._saver is not None:
            self._saver.wait(timeout_s)
        return self.check()

    def steps(self) -> list[int]:
        """Returns the durable steps, oldest first; needs no JAX. Those of the last look, where the disk hangs."""

        def look() -> list[int]:
            return [int(path.name) for path in self._look() if (path / MANIFEST).is_file()]

        with contextlib.suppress(storage.StorageTimeout):
            self._seen = storage.bounded(look, LOOK_S)
        return list(self._seen)

    def candidates(self) -> list[int]:
        """Returns the steps by their names, newest first, also such as have lost their manifest.

        Raises:
            StorageError: the storage does not answer.
        """
        try:
            return storage.bounded(lambda: [int(path.name) for path in reversed(self._look())], LOOK_S)
        except storage.StorageTimeout as error:
            raise self._no_answer(error) from error

    def _look(self) -> list[Path]:
        """The step directories, oldest first."""
        if not self.directory.is_dir():
            return []
        going = {path for path, deletion in self._deleting.items() if not deletion.done}
        found = [path for path in self.directory.iterdir() if path.name.isdecimal() and path not in going]
        return sorted(found, key=lambda path: int(path.name))

    def latest(self) -> int | None:
        """Returns the newest durable step, or None."""
        return max(self.steps(), default=None)

    def restore(self, step: int, abstract_state: Any, stacked: Mapping[str, int] | None = None) -> Any:
        """Returns the state of a step, placed as asked for, whatever mesh it was saved from; every bit is checked.

        Args:
            step: a candidate.
            abstract_state: the state as jax.ShapeDtypeStruct with shardings.
            stacked: path of each parameter of a stack of layers -> how many of its first dimensions hold the layers;
                it may have been saved with another number of them.

        Raises:
            CheckpointError: there is no such step, it cannot be read, or it is not of this model: the sentence
                names the leaves that differ.
            DamagedCheckpoint: it is not what was saved, told alike in every process.
            StorageError: it takes longer than the bound, here or in another process, which is named.
        """
        self._same.discard(step)
        if step not in self.candidates():
            self._need(step)
        end = time.monotonic() + self._timeout_s
        try:
            state = storage.bounded(
                lambda: self._sound(step, abstract_state, stacked or {}), self._timeout_s, "restore"
            )
        except storage.StorageTimeout as error:
            raise self._too_late(step, [processes.index()]) from error
        except NotInTime as error:
            raise self._too_late(step, [error.process]) from error
        if missing := group.barrier(f"restore/{self.directory.name}/{step}", max(1.0, end - time.monotonic())):
            raise self._too_late(step, missing)
        self._same.add(step)
        return state

    def _sound(self, step: int, abstract_state: Any, stacked: Mapping[str, int]) -> Any:
        """The state of a step, checked before it is read and after."""
        from engine.parallel.digest import Digests  # loads JAX

        path = self.directory / str(step)
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(FileNotFoundError):  # that there is no manifest is told next
                stack.enter_context(read_lock(path))
            manifest = verify(path, 0.9 * self._timeout_s)  # before this process's own bound: who is late is named
            state = self._read(step, abstract_state, stacked)
            compare(path, manifest, Digests(state).of(state))
        return state

    def _read(self, step: int, abstract_state: Any, stacked: Mapping[str, int]) -> Any:
        folder = self.directory / str(step) / STATE
        with failing(lambda words: self._unreadable(step, words)):
            stored = leaves_of(arrays.describe(folder))
        wanted = leaves_of(abstract_state)
        folds = other_folds(stored, wanted, stacked)
        if differing := difference(stored | {path: wanted[path] for path in folds}, wanted):
            raise CheckpointError(
                f"{self.directory / str(step)} is not of this model:\n{differing}\n"
                "Use the config and the code that it was saved with (its config lies in it), start anew with "
                "--fresh, or begin a run in another --workdir with those of its weights that fit, by "
                f"--config.init.checkpoint={self.directory.parent} and init.paths."
            )
        with failing(lambda words: self._unreadable(step, words)):
            state = arrays.read(folder, with_stored_folds(abstract_state, stored, folds))
        return with_wanted_folds(state, abstract_state, folds)

    def position(self, step: int) -> dict[str, Any]:
        """Returns where the data goes on after a step, as it was saved; needs no JAX. Raises CheckpointError."""
        return self._read_json(step, POSITION)

    def config_text(self, step: int) -> str:
        """Returns the config that a step was saved with; needs no JAX. Raises CheckpointError."""
        return "\n".join(self._read_json(step, CONFIG)["lines"])

    def describe(self) -> list[StepInfo]:
        """Returns what is known of each durable step, oldest first; needs no JAX."""
        results = read_results(self.directory)
        infos = []
        for step in self.steps():
            path = self.directory / str(step)
            size = sum(files_of(path).values())
            infos.append(StepInfo(step, size, (path / MANIFEST).stat().st_mtime, results.get(step, {})))
        return infos

    def delete(self, step: int) -> None:
        """Removes a durable step: it is gone from the list at once, its files go in another thread.

        One that another process reads at that moment stays, and is listed again.

        Raises:
            CheckpointError: there is no such step.
        """
        self._writable("delete")
        self._same.discard(step)
        if not processes.is_primary():
            return
        self._need(step)
        path = self.directory / str(step)
        gone = self.directory / f"{step}.d{next(self._deletions)}{DELETED}"

        def remove() -> None:
            with delete_lock(path) as free:
                if not free:
                    return
                path.rename(gone)
            shutil.rmtree(gone)

        self._seen.remove(step)
        self._deleting[path] = storage.Background(remove, f"delete-{step}")

    def close(self, timeout_s: float | None = None) -> None:
        """Waits for what is under way, which has a bound.

        Args:
            timeout_s: a nearer bound for the save.

        Raises:
            CheckpointError: a save or a deletion has failed.
        """
        self.wait(timeout_s)
        if texts := self.not_deleted(_DELETION_S):
            raise CheckpointError(" ".join(texts))

    def not_deleted(self, timeout_s: float = 0.0) -> list[str]:
        """Returns, once, a sentence for each deletion that has failed.

        Args:
            timeout_s: for each of those under way; what is not done then, the next writer finishes.
        """
        texts = []
        for path, deletion in list(self._deleting.items()):
            try:
                deletion.result(timeout_s)
            except storage.StorageTimeout:
                continue
            except Exception as error:
                texts.append(f"{path}: an old checkpoint cannot be removed ({arrays.words_of(error)}).")
            del self._deleting[path]
        return texts

    def _no_answer(self, error: storage.StorageTimeout) -> StorageError:
        return StorageError(
            f"{self.directory}: the storage does not answer ({error}). See that it is mounted and not overloaded, "
            "then start the same command again."
        )

    def _not_saved(self, step: int, words: str) -> str:
        newest = max((seen for seen in self._seen if seen != step), default=None)
        kept = "No checkpoint is there yet" if newest is None else f"The newest checkpoint is that of step {newest}"
        return f"{self.directory}: step {step} could not be saved ({words}). {kept}."

    def _too_late(self, step: int, missing: list[int]) -> StorageError:
        who = ", ".join(f"process {index}" for index in missing)
        return StorageError(
            f"{self.directory / str(step)}: not restored within checkpoint.timeout, {self._timeout_s:g} s: {who} "
            "did not come to the end of it. See that the storage answers there, then start the same command again."
        )

    def _unreadable(self, step: int, error: str) -> str:
        others = ", ".join(str(other) for other in self.steps() if other != step) or "none"
        return (
            f"{self.directory / str(step)}: cannot be read ({error}). Other checkpoints there: {others}. "
            f"Move {step} elsewhere to go on from the newest of them."
        )

    def _need(self, step: int) -> None:
        if step not in (steps := self.steps()):
            raise CheckpointError(
                f"{self.directory}: there is no checkpoint of step {step}. "
                f"Steps there: {', '.join(map(str, steps)) or 'none'}."
            )

    def _writable(self, verb: str) -> Saver:
        if self._saver is None:
            raise CheckpointError(f"{self.directory}: opened read-only, cannot {verb}. Open it with read_only=False.")
        return self._saver

    def _read_json(self, step: int, name: str) -> Any:
        self._need(step)
        path = self.directory / str(step) / name
        try:
            return json.loads(storage.bounded(path.read_text, self._timeout_s))
        except (OSError, ValueError) as error:
            raise CheckpointError(self._unreadable(step, f"{name}: {error}")) from error
