"""Trains runs, whatever their task is; keeps the compiled programs and the data for the next run."""

from collections.abc import Callable, Sequence

from benchmarks.optimizers.optimizers import OPTIMIZERS
from benchmarks.optimizers.problems import PROBLEMS, train_problem
from benchmarks.optimizers.rows import Row, Run
from benchmarks.optimizers.timing import PARTS
from benchmarks.optimizers.trial import Trials

_trials: dict[object, Trials] = {}


def train(run: Run, folder: str, on_progress: Callable[[str], None] = lambda text: None) -> Row:
    """Returns the row of a run.

    Args:
        run: the run.
        folder: of the recordings of ETH/UCY.
        on_progress: called with a line while the run trains.

    Raises:
        ConvoyError: the data is missing, or the settings do not fit together.
    """
    if run.task in PROBLEMS:
        return train_problem(run)
    key = (run.task, run.optimizer)
    if key not in _trials:
        _trials.clear()  # their programs and batches are not needed any more
        _trials[key] = Trials(OPTIMIZERS[run.optimizer], folder)
    return _trials[key].train(run, on_progress)


def train_in_turns(runs: Sequence[Run], folder: str) -> list[Row]:
    """Returns the rows of runs of one task, one for each optimizer: each trains a part of its steps, then the next.

    Args:
        runs: the runs.
        folder: of the recordings of ETH/UCY.

    Raises:
        ConvoyError: the data is missing.
    """
    ready = [Trials(OPTIMIZERS[run.optimizer], folder).ready(run) for run in runs]
    for part in range(PARTS):
        for run, trial in zip(runs, ready, strict=True):
            trial.advance(run.steps * (part + 1) // PARTS)
    return [trial.row() for trial in ready]
