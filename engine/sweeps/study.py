"""Optuna's study of a sweep: asks for values, reports results, prunes. Only the driver of a sweep uses it.

A trial is created and gets its values in several writes. A trial without the attribute VALUES is what a driver that was
killed in between has left: `recover` marks it, and it does not count.
"""

import contextlib
import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.base.errors import ConfigError
from engine.config.schema import Plain

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

VALUES, RUNS, RESULTS, INTERVAL = "values", "runs", "results", "interval"
STEPS, PROBLEM, KIND, SECONDS = "steps", "problem", "kind", "seconds"
ABANDONED = "abandoned"
"""The KIND of a trial whose driver was killed before the trial had values."""
SAMPLERS = ("tpe", "random", "grid", "qmc", "cmaes", "gp")
PRUNERS = ("halving", "median")
_PACKAGES = {"cmaes": "cmaes", "gp": "torch"}
"""Sampler -> the package that it needs in addition to Optuna."""


def load_optuna() -> Any:
    """Returns the module `optuna`, which reports errors only. Raises ConfigError if it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries that it imports
            import optuna
    except ModuleNotFoundError as error:
        from engine.base.extras import install_command

        raise ConfigError(f"a sweep needs Optuna, which is not installed: {install_command('sweep')}.") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides Optuna's warnings that a sampler or an option is experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def repair_journal(path: Path) -> None:
    """Removes what a killed writer has left: a line that is not complete at the end, and the lock of the journal.

    Optuna appends the next record to an incomplete line, and then cannot read the journal again. The caller must be the
    only writer.
    """
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if not path.exists():
        return
    with open(path, "rb+") as file:
        content = file.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            file.truncate(end)
            file.flush()
            os.fsync(file.fileno())


def open_storage(where: str) -> "optuna.storages.BaseStorage":
    """Returns Optuna's storage: of a database if `where` is a URL, else of a journal file.

    Raises:
        ConfigError: the database or the journal cannot be opened.
    """
    optuna = load_optuna()
    try:
        with _quiet():
            if "://" in where:
                from sqlalchemy.pool import NullPool  # Optuna needs SQLAlchemy

                return optuna.storages.RDBStorage(where, engine_kwargs={"poolclass": NullPool})
            backend = optuna.storages.journal.JournalFileBackend(where)
            return optuna.storages.JournalStorage(backend)
    except Exception as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{where}: Optuna cannot open this storage ({text}). Check the address.") from error


def has_study(where: str, name: str) -> bool:
    """Returns whether a storage has a study of a name. Raises ConfigError if the storage cannot be opened."""
    return any(study.study_name == name for study in open_storage(where).get_all_studies())


class Study:
    """The trials of a sweep in Optuna's storage.

    Args:
        where: a database URL, or the path of the journal.
        name: name of the study in the storage.
        direction: "max" or "min".

    Raises:
        ConfigError: the storage cannot be opened.
    """

    def __init__(self, where: str, name: str, direction: str):
        optuna = self._optuna = load_optuna()
        self._storage = open_storage(where)
        with _quiet():
            self._study: Any = optuna.create_study(
                storage=self._storage, study_name=name, direction=f"{direction}imize", load_if_exists=True
            )
        self._id = self._storage.get_study_id_from_name(name)

    def trials(self) -> "list[FrozenTrial]":
        """Returns all trials by number, without those that were abandoned, or created and never asked for."""
        waiting = self._optuna.trial.TrialState.WAITING
        found = self._study.get_trials(deepcopy=False)
        return [each for each in found if each.user_attrs.get(KIND) != ABANDONED and each.state != waiting]

    def first_step(self) -> int:
        """Returns the first step of any trial that was reported; 1 before that."""
        return min((min(each.intermediate_values) for each in self.trials() if each.intermediate_values), default=1)

    def recover(self) -> "list[FrozenTrial]":
        """Marks trials without values as abandoned; returns those that were running when the last driver ended."""
        running = [trial for trial in self.trials() if trial.state == self._optuna.trial.TrialState.RUNNING]
        for trial in running:
            if VALUES not in trial.user_attrs:
                self._set(trial.number, {KIND: ABANDONED})
                self._study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)
        return [trial for trial in running if VALUES in trial.user_attrs]

    def ask(
        self,
        suggest: "Callable[[optuna.Trial], Mapping[str, Plain]]",
        sampler: "optuna.samplers.BaseSampler | None",
        fixed: Mapping[str, Any] | None = None,
    ) -> tuple[int, dict[str, Plain]]:
        """Creates a trial; returns its number and its values.

        Args:
            suggest: chooses the values through `trial.suggest_float` and the like.
            sampler: Optuna's sampler; None with `fixed`.
            fixed: parameters of the trial, if they are not sampled.
        """
        with _quiet():
            if sampler is not None:
                self._study.sampler = sampler
            waiting = self._study.get_trials(deepcopy=False, states=[self._optuna.trial.TrialState.WAITING])
            if fixed is not None and not waiting:  # a driver that was killed after this line leaves a waiting trial
                self._study.enqueue_trial(dict(fixed))
            trial = self._study.ask()
            values = dict(suggest(trial))
        trial.set_user_attr(VALUES, json.dumps(values))
        return trial.number, values

    def report(self, number: int, step: int, value: float) -> bool:
        """Adds the value of a step; returns False if it was added before."""
        trial_id = self._trial_id(number)
        if step in self._storage.get_trial(trial_id).intermediate_values:
            return False
        self._storage.set_trial_intermediate_value(trial_id, step, value)
        return True

    def should_prune(self, number: int, pruner: "optuna.pruners.BasePruner") -> bool:
        """Returns whether a pruner ends a trial, by its newest reported value and those of the others."""
        with _quiet():
            return pruner.prune(self._study, self._storage.get_trial(self._trial_id(number)))

    def complete(self, number: int, value: float, attributes: Mapping[str, Any]) -> None:
        """Ends a trial with its value."""
        self._set(number, attributes)
        self._study.tell(number, value)

    def prune(self, number: int, attributes: Mapping[str, Any]) -> None:
        """Ends a trial that was pruned; its value is the last one that was reported."""
        self._set(number, attributes)
        self._study.tell(number, state=self._optuna.trial.TrialState.PRUNED)

    def fail(self, number: int, attributes: Mapping[str, Any]) -> None:
        """Ends a trial that has failed."""
        self._set(number, attributes)
        self._study.tell(number, state=self._optuna.trial.TrialState.FAIL)

    def _set(self, number: int, attributes: Mapping[str, Any]) -> None:
        for name, value in attributes.items():
            self._storage.set_trial_user_attr(self._trial_id(number), name, value)

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)


def make_sampler(kind: str, seed: int, number: int, parallel: bool) -> "optuna.samplers.BaseSampler | None":
    """Returns Optuna's sampler for one trial; None for a grid.

    The random numbers depend on the number of the trial, so that a sweep that was killed continues with others than
    those that it has used.

    Args:
        kind: one of SAMPLERS.
        seed: seed of the sweep.
        number: number of trials so far.
        parallel: whether several trials run at once.

    Raises:
        ConfigError: a library of the sampler is not installed.
    """
    samplers = load_optuna().samplers
    own = (seed * 1_000_003 + number) % 2**32
    with _quiet():
        if kind == "grid":
            return None
        if kind == "random":
            return samplers.RandomSampler(seed=own)
        if kind == "qmc":
            # It stores its position in the sequence, which has no settings that trial 0 lacks (conditional ones).
            others = samplers.RandomSampler(seed=own)
            return samplers.QMCSampler(seed=seed, scramble=True, independent_sampler=others)
        if kind in _PACKAGES:
            package = _PACKAGES[kind]
            if importlib.util.find_spec(package) is None:
                raise ConfigError(
                    f"--sampler={kind}: needs the package {package}, which is not installed: pip install {package}, or "
                    "use --sampler=tpe."
                )
            return samplers.CmaEsSampler(seed=own) if kind == "cmaes" else samplers.GPSampler(seed=own)
        return samplers.TPESampler(seed=own, multivariate=True, group=True, constant_liar=parallel)


def make_pruner(kind: str, first: int, factor: int) -> "optuna.pruners.BasePruner":
    """Returns Optuna's pruner.

    Args:
        kind: "halving" (ASHA; Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning") or "median".
        first: the first step at which a trial may be pruned.
        factor: with "halving": of the trials at a rung, one in so many continues, for so many times as many steps.
    """
    pruners = load_optuna().pruners
    first = max(1, first)  # a function may report step 0
    if kind == "halving":
        return pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=factor)
    return pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=first - 1)


def values_of(trial: "FrozenTrial") -> dict[str, Any]:
    """Returns the settings of a trial and their values; tuples are lists there."""
    return json.loads(trial.user_attrs.get(VALUES, "{}"))


def best_first(trials: "Sequence[FrozenTrial]", direction: str) -> "list[FrozenTrial]":
    """Returns the completed trials, the best first; of equal values the earlier one."""
    done = [trial for trial in trials if trial.state.name == "COMPLETE" and trial.value is not None]
    sign = -1 if direction == "max" else 1
    return sorted(done, key=lambda trial: (sign * (trial.value or 0.0), trial.number))
