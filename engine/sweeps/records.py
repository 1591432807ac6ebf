"""Reads the trials of a sweep, from Optuna's storage and from run directories. It writes nothing: a driver may run."""

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.base.errors import ConvoyError
from engine.config.schema import Plain
from engine.experiments.record import STATUS
from engine.run import status
from engine.sweeps import study
from engine.sweeps.folder import Definition, SweepFolder
from engine.sweeps.space import as_plain

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

COMPLETE, PRUNED, RUNNING, FAILED = "complete", "pruned", "running", "failed"
STATES = (COMPLETE, PRUNED, RUNNING, FAILED)
"""States of a trial, in the order of the table."""
_STATES = {"COMPLETE": COMPLETE, "PRUNED": PRUNED, "RUNNING": RUNNING, "FAIL": FAILED}


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial, as its files were when the record was made.

    Attributes:
        number: its number in the sweep.
        state: one of STATES.
        values: the settings of the trial.
        value: the metric, the mean over seeds; of a pruned or running trial that of its newest evaluation.
        interval: 95 % interval of the mean; None for fewer than two seeds.
        results: the metric of each seed.
        steps: trained steps of all its runs.
        total: steps that all its runs will train; None if not known or if the trial has ended.
        seconds: time from its start to its end or to now.
        problem: how it failed, or why a running one needs a restart; "" if nothing.
        kind: of a failed trial: "failed" or "out of memory".
        runs: run directories, relative to the sweep.
        started: when it began.
        ended: when it ended.
    """

    number: int
    state: str
    values: Mapping[str, Plain]
    value: float | None = None
    interval: tuple[float, float] | None = None
    results: Sequence[float] = ()
    steps: int = 0
    total: int | None = None
    seconds: float | None = None
    problem: str = ""
    kind: str = ""
    runs: Sequence[str] = ()
    started: datetime | None = None
    ended: datetime | None = None


@dataclass(frozen=True)
class SweepRecord:
    """A sweep and its trials, the best first: completed, pruned, running and failed ones."""

    path: Path
    definition: Definition
    trials: list[TrialRecord]

    @property
    def best(self) -> TrialRecord | None:
        """The best completed trial."""
        return next((trial for trial in self.trials if trial.state == COMPLETE and trial.value is not None), None)

    def of_state(self, *states: str) -> list[TrialRecord]:
        """Returns the trials of some states."""
        return [trial for trial in self.trials if trial.state in states]


def read_sweep(path: Path) -> SweepRecord:
    """Reads the sweep in a folder.

    Raises:
        RunError: the folder holds no sweep.
        ConfigError: Optuna is not installed, or its storage cannot be read.
    """
    folder = SweepFolder(path)
    definition = folder.read()
    stored = load_study(folder, definition)
    trials = [] if stored is None else stored.get_trials(deepcopy=False)
    found = [_record(folder, definition, trial) for trial in trials if _is_real(trial)]
    sign = -1 if definition.direction == "max" else 1
    return SweepRecord(path, definition, sorted(found, key=lambda trial: _rank(trial, sign)))


def load_study(folder: SweepFolder, definition: Definition) -> "optuna.Study | None":
    """Returns Optuna's study of a sweep for reading; None if the driver has not created it yet."""
    optuna = study.load_optuna()
    if not definition.storage and not folder.journal.exists():
        return None  # Optuna would create it
    with warnings.catch_warnings(), suppress(KeyError):
        warnings.simplefilter("ignore")  # that the journal is experimental
        return optuna.load_study(study_name=definition.name, storage=study.open_storage(folder.storage(definition)))
    return None


def _is_real(trial: "FrozenTrial") -> bool:
    """Whether a trial has values and a state of this module; others are left from drivers that were killed."""
    attributes = trial.user_attrs
    return trial.state.name in _STATES and study.VALUES in attributes and attributes.get(study.KIND) != study.ABANDONED


def _record(folder: SweepFolder, definition: Definition, trial: "FrozenTrial") -> TrialRecord:
    attributes, state = trial.user_attrs, _STATES[trial.state.name]
    interval = attributes.get(study.INTERVAL)
    shared: dict[str, Any] = dict(
        number=trial.number,
        state=state,
        values={name: as_plain(value) for name, value in study.values_of(trial).items()},
        value=_value(trial),
        interval=None if interval is None else (float(interval[0]), float(interval[1])),
        results=tuple(attributes.get(study.RESULTS) or ()),
        problem=attributes.get(study.PROBLEM, ""),
        kind=attributes.get(study.KIND, ""),
        started=trial.datetime_start,
        ended=trial.datetime_complete,
    )
    if state == RUNNING:
        return TrialRecord(**shared | _live(folder, definition, trial))
    return TrialRecord(
        **shared,
        steps=attributes.get(study.STEPS, 0),
        seconds=attributes.get(study.SECONDS),
        runs=tuple(attributes.get(study.RUNS, ())),
    )


def _value(trial: "FrozenTrial") -> float | None:
    reported = trial.intermediate_values
    value = trial.value if trial.state.name == "COMPLETE" else reported[max(reported)] if reported else None
    return value if value is not None and math.isfinite(value) else None


def _live(folder: SweepFolder, definition: Definition, trial: "FrozenTrial") -> dict[str, Any]:
    """Returns what the run directories say about a running trial."""
    seeds = definition.seeds
    paths = [path for seed in range(seeds) if (path := folder.run(trial.number, seed, seeds)).is_dir()]
    steps, totals, problem = 0, [], ""
    for path in paths:
        try:
            found = status.read(path / STATUS)
            steps += found.step
            totals += [] if found.total_steps is None else [found.total_steps]
            problem = status.missing_end(path / STATUS) or problem
        except ConvoyError:  # it has not started yet
            continue
    began = trial.datetime_start
    return {
        "steps": steps,
        "total": max(totals) * seeds if totals else None,
        "seconds": None if began is None else max(0.0, (datetime.now() - began).total_seconds()),
        "problem": problem,
        "runs": tuple(str(path.relative_to(folder.path)) for path in paths),
    }


def _rank(trial: TrialRecord, sign: int) -> tuple[int, int, float, int]:
    """Completed trials by value; others by state, those that trained longer first."""
    value = math.inf if trial.value is None else sign * trial.value
    return STATES.index(trial.state), 0 if trial.state == COMPLETE else -trial.steps, value, trial.number
