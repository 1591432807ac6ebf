"""The checkpoints of one run on disk: written without holding up the loop, listed, restored onto any mesh.

Owns: what a step's directory holds, when a step counts, and Orbax, which nothing else in the engine calls. Does not
own: when a save is due (`policy.py`), which steps stay (`retention.py`), what is in the state (`training/state.py`).

Terms. *Step directory*: `<directory>/<step>/` with `state` (arrays), `position` (the next unread example) and
`config` (the resolved config's text); the three become visible together, by one rename. *Durable*: that rename is
done; only durable steps are listed. *Leftover*: what a killed save or deletion leaves; never listed, removed when the
next writer opens the directory.

Arrays are stored as uncompressed zarr2 in OCDBT: `benchmarks/save_stall.py` compares the formats.
"""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint.leaves import difference, leaves_of, other_folds, with_stored_folds, with_wanted_folds
from engine.checkpoint.retention import read_results
from engine.cluster import processes
from engine.config.errors import CheckpointError

MARKER = "commit_success.txt"  # Orbax writes it last, just before the rename
DELETED = ".deleted"  # suffix of a step directory whose files are being removed
POSITION, CONFIG = "position.json", "config.json"


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
        self._read_only = read_only
        self._saving: int | None = None  # started, not known to be durable
        self._same: set[int] = set()  # steps on disk that hold what this run would save again
        self._deleting: list[Future[None]] = []
        self._deleter: ThreadPoolExecutor | None = None
        self._manager: Any = None
        if not read_only:
            with self._failing(lambda error: f"{self.directory}: cannot be opened for writing ({error})."):
                self._manager = self._open()
                if processes.is_first():
                    for leftover in self.directory.glob(f"*{DELETED}"):
                        shutil.rmtree(leftover)

    def save(self, step: int, state: Any, position: Mapping[str, int], config_text: str) -> bool:
        """Starts to save a step and returns; the state may be donated to the next call of the program at once.

        Args:
            step: name of the checkpoint.
            state: pytree of arrays.
            position: where the data goes on.
            config_text: the resolved config.

        Returns:
            False, and nothing is written, for a step that this run saved or restored before: it is the same. A step
            that lies there otherwise, from an attempt that this one did not go on from, is replaced.

        Raises:
            CheckpointError: this save cannot start, or an earlier one failed.
        """
        self._writable("save")
        self.wait()
        if step in self._same:
            return False
        ocp = _orbax()
        with self._failing(lambda error: self._save_failed(step, error), reopen=True):
            state = _apart(state)
            if step in self._manager.all_steps():
                self._manager.reload()
            if step in self._manager.all_steps():
                self._manager.delete(step)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state),
                    position=ocp.args.JsonSave(dict(position)),
                    config=ocp.args.JsonSave({"lines": config_text.split("\n")}),
                ),
                force=True,  # whether it is due was decided by the caller
            )
        self._saving = step
        return True

    def check(self) -> None:
        """Raises CheckpointError if the save or a deletion under way has failed; never waits for either."""
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self.wait()
        self._check_deletions([deletion for deletion in self._deleting if deletion.done()])

    def wait(self) -> None:
        """Returns when the save under way is durable.

        Raises:
            CheckpointError: it failed. It is told once; the next save starts anew.
        """
        step, self._saving = self._saving, None
        if step is None:
            return
        with self._failing(lambda error: self._save_failed(step, error), reopen=True):
            self._manager.wait_until_finished()
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
        ocp = _orbax()
        if self._manager is None:
            self._manager = self._open()
        with self._failing(lambda error: self._unreadable(step, error)):
            self._manager.reload()  # another process may have written since
            stored = leaves_of(self._manager.item_metadata(step).state.tree)
        wanted = leaves_of(abstract_state)
        folds = other_folds(stored, wanted, stacked or {})
        if differing := difference(stored | {path: wanted[path] for path in folds}, wanted):
            raise CheckpointError(
                f"{self.directory / str(step)} is not of this model:\n{differing}\n"
                "Use the config that it was saved with (it lies in the checkpoint), or start anew with --fresh."
            )
        with self._failing(lambda error: self._unreadable(step, error)):
            item = with_stored_folds(abstract_state, stored, folds)
            args = ocp.args.PyTreeRestore(item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item))
            state = self._manager.restore(step, args=ocp.args.Composite(state=args)).state
            jax.block_until_ready(state)
        state = with_wanted_folds(state, abstract_state, folds)
        self._same.add(step)
        return state

    def position(self, step: int) -> dict[str, int]:
        """Returns where the data goes on after a step; needs no JAX. Raises CheckpointError."""
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
        with self._failing(lambda error: f"{path}: cannot be removed ({error})."):
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
            if self._manager is not None:
                self._manager.close()
                self._manager = None

    def _open(self) -> Any:
        ocp = _orbax()
        options = ocp.CheckpointManagerOptions(
            read_only=self._read_only,
            create=not self._read_only,
            save_interval_steps=0 if self._read_only else 1,
            cleanup_tmp_directories=not self._read_only,
            save_root_metadata=False,
        )
        return ocp.CheckpointManager(
            self.directory,
            options=options,
            item_names=("state", "position", "config"),
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(use_compression=False),
                "position": ocp.JsonCheckpointHandler(filename=POSITION),
                "config": ocp.JsonCheckpointHandler(filename=CONFIG),
            },
        )

    @contextlib.contextmanager
    def _failing(self, sentence: Callable[[str], str], reopen: bool = False) -> Iterator[None]:
        """Turns what Orbax or the disk raises into a CheckpointError."""
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:
            if reopen:
                # A manager whose save failed lists that step and raises the same error for ever.
                with contextlib.suppress(Exception):
                    self._manager.close()
                with contextlib.suppress(Exception):
                    self._manager = self._open()
            first_line = (str(error).splitlines() or [""])[0][:300]  # TensorStore's errors fill pages
            raise CheckpointError(sentence(f"{type(error).__name__}: {first_line}")) from error

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

    def _writable(self, verb: str) -> None:
        if self._read_only:
            raise CheckpointError(f"{self.directory}: opened read-only, cannot {verb}. Open it with read_only=False.")

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
            with self._failing(lambda error: f"{self.directory}: an old checkpoint cannot be removed ({error})."):
                deletion.result()


class _OrbaxChatter(logging.Filter):
    """Drops Orbax's own records: failures reach the user as a CheckpointError; verbose absl logging shows all."""

    def filter(self, record: logging.LogRecord) -> bool:
        verbose = logging.getLogger("absl").getEffectiveLevel() <= logging.INFO
        return verbose or f"{os.sep}orbax{os.sep}" not in record.pathname


_CHATTER = _OrbaxChatter()


def _orbax() -> Any:
    """Imports Orbax (0.4 s and JAX) when it is first needed."""
    import orbax.checkpoint as ocp

    logging.getLogger("absl").addFilter(_CHATTER)
    return ocp


def _apart(state: Any) -> Any:
    """Returns a copy on CPU, whose arrays Orbax reads where they lie: the loop's own stay free to be donated.

    Without it, the next step copies the whole state beside the writer at work, which takes twice as long. On an
    accelerator Orbax itself copies, to the host, before its `save` returns.
    """
    import jax

    if jax.default_backend() != "cpu":
        return state
    return jax.device_put(state, jax.tree.map(lambda x: x.sharding, state), may_alias=False)
