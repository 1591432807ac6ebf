"""Read access to the config and checkpoints of an existing run, for evaluation, export and listing."""

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
        RunError: the directory is not a run.
    """

    def __init__(self, path: str | Path):
        self.directory = RunDirectory(path)
        self.config = from_text(self.directory.read_config_text(), str(self.directory.config))
        self._store = CheckpointStore(self.directory.checkpoints)

    def checkpoints(self) -> list[StepInfo]:
        """Returns step, size, time and results of each checkpoint, oldest first."""
        return self._store.describe()

    def choose(self, step: int | str | None) -> int:
        """Returns the step for a number, "latest", "best" or None; None, like "best": the best, else the newest.

        Raises:
            CheckpointError: there is no such checkpoint; the message lists the existing ones.
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
        """Returns the state of a checkpoint, sharded as the program requires."""
        abstract = program.abstract_state.to_tree()
        return TrainState.from_tree(self._store.restore(step, abstract, program.spec.model.stacked))


def newest_checkpoint(directory: RunDirectory) -> int | None:
    """Returns the step of the newest checkpoint of a run; None if there is nothing to resume from."""
    return CheckpointStore(directory.checkpoints).latest() if directory.exists() else None
