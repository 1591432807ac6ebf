"""The checkpoints of one run on disk: listed, restored onto any mesh, removed; what writes them is its `Saver`.

Owns: what a step's directory holds, and when a step counts. Does not own: how one is written (`saving.py`) and in
which format (`manager.py`), when a save is due (`policy.py`), which steps stay (`retention.py`), what is in the state
(`training/state.py`).

Terms. *Step directory*: `<directory>/<step>/` with `state` (arrays), `position` (the next unread example) and
`config` (the resolved config's text); the three become visible together, by one rename. *Durable*: that rename is
done; only durable steps are listed. *Leftover*: what a killed save or deletion leaves; never listed, removed when the
next writer opens the directory.
"""

import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint.leaves import difference, leaves_of, other_folds, with_stored_folds, with_wanted_folds
from engine.checkpoint.manager import CONFIG, POSITION, failing, open_manager, orbax
from engine.checkpoint.retention import read_results
from engine.checkpoint.saving import Saver
from engine.cluster import processes
from engine.config.errors import CheckpointError

MARKER = "commit_success.txt"  # Orbax writes it last, just before the rename
DELETED = ".deleted"  # suffix of a step directory whose files are being removed


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

    Raises:
        CheckpointError: the directory cannot be made or read.

    One writer at a time. With several processes, all call `save`, `restore`, `wait` and `close` at the same steps.
    """

    def __init__(self, directory: str | os.PathLike, *, read_only: bool = False):
        self.directory = Path(directory).absolute()
        self._same: set[int] = set()  # steps on disk that hold what this run would save again
        self._deleting: list[Future[None]] = []
        self._deleter: ThreadPoolExecutor | None = None
        self._saver: Saver | None = None
        self._reader: Any = None  # opened when it is first needed, where there is no saver
        if not read_only:
            with failing(lambda words: f"{self.directory}: cannot be opened for writing ({words})."):
                self._saver = Saver(self.directory, self._save_failed)
                if processes.is_first():
                    for leftover in self.directory.glob(f"*{DELETED}"):
                        shutil.rmtree(leftover)

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
            CheckpointError: this save cannot start, or an earlier one failed.
        """
        saver = self._writable("save")
        self.wait()
        if step in self._same:
            return False
        saver.start(step, state, position, config_text)
        return True

    def check(self) -> None:
        """Raises CheckpointError if the save or a deletion under way has failed; never waits for either."""
        if self._saver is not None and self._saver.ended():
            self.wait()
        self._check_deletions([deletion for deletion in self._deleting if deletion.done()])

    def wait(self) -> None:
        """Returns when the save under way is durable.

        Raises:
            CheckpointError: it failed. It is told once; the next save starts anew.
        """
        if self._saver is not None and (step := self._saver.wait()) is not None:
            self._same.add(step)

    def steps(self) -> list[int]:
        """Returns the durable steps, oldest first; needs no JAX."""
        if not self.directory.is_dir():
            return []
        names = [path.name for path in self.directory.iterdir() if (path / MARKER).is_file()]
        return sorted(int(name) for name in names if name.isdecimal())

    def latest(self) -> int | None:
        """Returns the newest durable step, or None."""
        return max(self.steps(), default=None)

    def restore(self, step: int, abstract_state: Any, stacked: Mapping[str, int] | None = None) -> Any:
        """Returns the state of a step, placed as asked for, whatever mesh it was saved from.

        Args:
            step: a durable step.
            abstract_state: the state as jax.ShapeDtypeStruct with shardings.
            stacked: path of each parameter of a stack of layers -> how many of its first dimensions hold the layers;
                it may have been saved with another number of them.

        Raises:
            CheckpointError: there is no such step, it cannot be read, or it is not of this model: the sentence
                names the leaves that differ.
        """
        import jax

        self._need(step)
        ocp, manager = orbax(), self._manager()
        with failing(lambda words: self._unreadable(step, words)):
            manager.reload()  # another process may have written since
            stored = leaves_of(manager.item_metadata(step).state.tree)
        wanted = leaves_of(abstract_state)
        folds = other_folds(stored, wanted, stacked or {})
        if differing := difference(stored | {path: wanted[path] for path in folds}, wanted):
            raise CheckpointError(
                f"{self.directory / str(step)} is not of this model:\n{differing}\n"
                "Use the config and the code that it was saved with (its config lies in it), start anew with "
                "--fresh, or begin a run in another --workdir with those of its weights that fit, by "
                f"--config.init.checkpoint={self.directory.parent} and init.paths."
            )
        with failing(lambda words: self._unreadable(step, words)):
            item = with_stored_folds(abstract_state, stored, folds)
            args = ocp.args.PyTreeRestore(item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item))
            state = manager.restore(step, args=ocp.args.Composite(state=args)).state
            jax.block_until_ready(state)
        state = with_wanted_folds(state, abstract_state, folds)
        self._same.add(step)
        return state

    def position(self, step: int) -> dict[str, Any]:
        """Returns where the data goes on after a step, as it was saved; needs no JAX. Raises CheckpointError."""
        return self._read_json(step, "position", POSITION)

    def config_text(self, step: int) -> str:
        """Returns the config that a step was saved with; needs no JAX. Raises CheckpointError."""
        return "\n".join(self._read_json(step, "config", CONFIG)["lines"])

    def describe(self) -> list[StepInfo]:
        """Returns what is known of each durable step, oldest first; needs no JAX."""
        results = read_results(self.directory)
        infos = []
        for step in self.steps():
            path = self.directory / str(step)
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            infos.append(StepInfo(step, size, (path / MARKER).stat().st_mtime, results.get(step, {})))
        return infos

    def delete(self, step: int) -> None:
        """Removes a durable step: it is gone from the list at once, its files go in another thread.

        Raises:
            CheckpointError: there is no such step, or it cannot be removed.
        """
        self._writable("delete")
        self._same.discard(step)
        if not processes.is_first():
            return
        self._need(step)
        path, gone = self.directory / str(step), self.directory / f"{step}{DELETED}"
        with failing(lambda words: f"{path}: cannot be removed ({words})."):
            path.rename(gone)
        if self._deleter is None:
            self._deleter = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-deletion")
        self._deleting.append(self._deleter.submit(shutil.rmtree, gone))

    def close(self) -> None:
        """Waits for what is under way and ends all threads. Raises CheckpointError like `wait`."""
        try:
            self.wait()
            self._check_deletions(self._deleting)
        finally:
            if self._deleter is not None:
                self._deleter.shutdown()
            for opened in (self._saver, self._reader):
                if opened is not None:
                    opened.close()
            self._saver = self._reader = None

    def _manager(self) -> Any:
        if self._saver is not None:
            return self._saver.manager
        if self._reader is None:
            self._reader = open_manager(self.directory, read_only=True)
        return self._reader

    def _save_failed(self, step: int, error: str) -> str:
        newest = self.latest()
        kept = "No checkpoint is there yet" if newest is None else f"The newest checkpoint is that of step {newest}"
        return (
            f"{self.directory}: step {step} could not be saved ({error}). {kept}. "
            "Free space or allow writing there, then run the same command again."
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

    def _read_json(self, step: int, item: str, name: str) -> Any:
        self._need(step)
        path = self.directory / str(step) / item / name
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(self._unreadable(step, f"{item}/{name}: {error}")) from error

    def _check_deletions(self, deletions: list[Future[None]]) -> None:
        for deletion in list(deletions):
            self._deleting.remove(deletion)
            with failing(lambda words: f"{self.directory}: an old checkpoint cannot be removed ({words})."):
                deletion.result()
