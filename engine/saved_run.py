"""An existing run, to be evaluated, exported or listed: its config and its checkpoints. Nothing is written."""

from pathlib import Path

from engine.checkpoint.policy import Retention
from engine.checkpoint.store import CheckpointStore, StepInfo
from engine.config.errors import CheckpointError
from engine.config.text import from_text
from engine.run.directory import RunDirectory
from engine.training.program import Program
from engine.training.state import TrainState


class SavedRun:
    """The directory, the config and the checkpoints of a run.

    Raises:
        RunError: the directory is no run.
    """

    def __init__(self, path: str | Path):
        self.directory = RunDirectory(path)
        self.config = from_text(self.directory.read_config_text(), str(self.directory.config))
        self._store = CheckpointStore(self.directory.checkpoints)

    def checkpoints(self) -> list[StepInfo]:
        """Returns what is known of each checkpoint, oldest first."""
        return self._store.describe()

    def choose(self, step: int | str | None) -> int:
        """Returns the step that a number, "latest", "best" or None means; None is the best if there is one.

        Raises:
            CheckpointError: no such checkpoint; names those that exist.
        """
        steps, c = self._store.steps(), self.config.checkpoint
        best = Retention(self.directory.checkpoints, c.keep_latest, c.best, c.best_mode, c.keep_best).best()
        if not steps:
            raise CheckpointError(
                f"{self.directory}: no checkpoint yet. Train first: convoy train --config={self.directory}"
            )
        if step in (None, "best") and best is not None and best[0] in steps:
            return best[0]
        if step in (None, "latest"):
            return steps[-1]
        if str(step).isdigit() and int(str(step)) in steps:
            return int(str(step))
        found = ", ".join(map(str, steps))
        raise CheckpointError(f"{self.directory}: no checkpoint {step!r}. Found: {found}, latest, best.")

    def restore(self, step: int, program: Program) -> TrainState:
        """Returns the state of a checkpoint, placed as the program places it."""
        abstract = program.abstract_state.to_tree()
        return TrainState.from_tree(self._store.restore(step, abstract, program.spec.model.stacked))


def has_checkpoint(directory: RunDirectory) -> bool:
    """Whether a run has trained so far that a resume begins with its state."""
    return directory.exists() and CheckpointStore(directory.checkpoints).latest() is not None
