"""Searches settings of a config, or arguments of a function, with Optuna."""

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.base.errors import ConfigError, RunError, did_you_mean
from engine.config.loading import load
from engine.config.schema import Config, Plain
from engine.config.text import field_texts
from engine.launch.signals import Signals
from engine.metrics.direction import mode_of
from engine.sweeps.asking import Asking
from engine.sweeps.budget import Budget
from engine.sweeps.commands import Commands
from engine.sweeps.driver import Driver
from engine.sweeps.folder import Definition, SweepFolder
from engine.sweeps.objective import Objective, search_function
from engine.sweeps.results import write_results
from engine.sweeps.space import Space, as_plain
from engine.sweeps.study import PRUNERS, SAMPLERS, Study, best_first, has_study, make_sampler, repair_journal, values_of
from engine.sweeps.workers import Workers

_PASSWORD = re.compile(r"://[^/@:]*:[^/@]+@")
DEFAULT_TRIALS, DEFAULT_FACTOR = 20, 3


@dataclass(frozen=True)
class SweepResult:
    """What a sweep has found."""

    folder: Path
    metric: str
    trials: int
    """Finished trials, pruned and failed ones included."""
    failed: int
    best: int | None
    """Number of the best trial; None if none was completed."""
    value: float | None
    """Its metric, the mean over its seeds."""
    values: Mapping[str, Plain]
    """Its settings."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """A sweep of a config as the user describes it; None and "" stand for defaults.

    Attributes:
        reference: the config: a file, a module or a run directory.
        overrides: overrides of the config, each "train.total=2 epochs".
        space: the settings that are searched.
        metric: "evaluation/metric"; "": `checkpoint.best`.
        mode: "max", "min", or "auto": as the name of the metric says.
        sampler: one of `study.SAMPLERS`.
        trials: number of trials; None: 20, or every point of a grid.
        prune: one of `study.PRUNERS`; "" prunes nothing.
        rung: first step at which a trial may be pruned; 0: that of the first evaluation.
        factor: reduction factor of halving.
        seeds: runs of each trial.
        budget: budget of each run (`Budget.parse`).
        seed: seed of the sampler.
        storage: URL of Optuna's storage; "": a journal in the folder.
    """

    reference: str
    space: Space
    overrides: Sequence[str] = ()
    metric: str = ""
    mode: str = "auto"
    sampler: str = "tpe"
    trials: int | None = None
    prune: str = ""
    rung: int = 0
    factor: int = DEFAULT_FACTOR
    seeds: int = 1
    budget: str = ""
    seed: int = 0
    storage: str = ""

    def config(self) -> Config:
        """Returns the base config."""
        return load(self.reference, self.overrides)

    def define(self, folder: SweepFolder, config: Config) -> Definition:
        """Checks the search of a config; returns its definition.

        Raises:
            ConfigError: a value is not allowed, or the config does not measure the metric.
        """
        metric = self.metric or str(config.checkpoint.best or "")
        _check_metric(metric, config, bool(self.prune))
        Budget.parse(self.budget)
        sets = {"--seeds": ("train.seed", self.seeds > 1), "--budget": ("train.total", bool(self.budget))}
        for flag, (setting, is_given) in sets.items():
            if is_given and setting in self.space.domains:
                raise ConfigError(f"{flag}: sets {setting}, which the space searches. Remove one of them.")
        mode = config.checkpoint.best_mode if self.mode == "auto" and metric == config.checkpoint.best else self.mode
        return self._definition(folder, metric, mode_of(mode, metric), field_texts(config))

    def define_function(self, folder: SweepFolder) -> Definition:
        """Does what `define` does for a function, whose `mode` is "max" or "min"."""
        return self._definition(folder, "objective", self.mode, {})

    def _definition(self, folder: SweepFolder, metric: str, direction: str, config: dict[str, str]) -> Definition:
        self._check()
        if _PASSWORD.search(self.storage):
            raise ConfigError(
                "--storage: contains a password, which everybody could read in sweep.json. Use the password file of "
                "the database, such as ~/.pgpass."
            )
        points = len(self.space.grid()) if self.sampler == "grid" else None
        trials = self.trials or points or DEFAULT_TRIALS
        return Definition(
            name=folder.path.resolve().name,  # also for --workdir=.
            reference=self.reference,
            overrides=list(self.overrides),
            config=config,
            space=self.space.to_texts(),
            metric=metric,
            direction=direction,
            sampler=self.sampler,
            prune=self.prune,
            rung=self.rung,
            factor=self.factor,
            trials=min(trials, points) if points else trials,
            seeds=self.seeds,
            budget=self.budget,
            seed=self.seed,
            storage=self.storage,
        )

    def _check(self) -> None:
        """Raises ConfigError for a value that is not allowed."""
        choices = (("--sampler", self.sampler, SAMPLERS), ("--prune", self.prune, ("", *PRUNERS)))
        for name, value, allowed in (*choices, ("--mode", self.mode, ("auto", "max", "min"))):
            if value not in allowed:
                names = ", ".join(filter(None, allowed))
                raise ConfigError(f"{name}={value}: unknown.{did_you_mean(value, allowed)} Allowed: {names}.")
        for name, value, least in (
            ("--trials", self.trials, 1), ("--seeds", self.seeds, 1), ("--rung", self.rung, 0),
            ("--factor", self.factor, 2), ("--seed", self.seed, 0),
        ):  # fmt: skip
            if value is not None and value < least:
                raise ConfigError(f"{name}={value}: allowed is a whole number from {least}.")


def _check_metric(metric: str, config: Config, prune: bool) -> None:
    """Raises ConfigError if a config does not measure a metric, or does so only at the end and trials are pruned."""
    evaluation, _, rest = metric.partition("/")
    if not rest:
        allowed = ", ".join(f"{name}/NAME" for name in config.evaluations) or "none, since it has no evaluations"
        raise ConfigError(f"--metric={metric}: is not the metric of an evaluation. Allowed: {allowed}.")
    if evaluation not in config.evaluations and evaluation not in config.hooks:
        near = did_you_mean(evaluation, [*config.evaluations, *config.hooks])
        names = ", ".join([*config.evaluations, *config.hooks]) or "none"
        raise ConfigError(f"--metric={metric}: the config has no evaluation {evaluation}.{near} It has: {names}.")
    if prune and evaluation not in config.evaluations:
        raise ConfigError(f"--prune: {metric} is of a hook. Trials are pruned by the metric of an evaluation.")
    if prune and config.evaluations[evaluation].every is None:
        raise ConfigError(f"--prune: evaluations.{evaluation}.every is None, so nothing is measured before the end.")


def run_search(
    search: Search,
    folder: SweepFolder,
    make_workers: Callable[[SweepFolder], Workers],
    say: Callable[[str], None],
) -> SweepResult:
    """Runs a sweep of a config, or continues it.

    Args:
        search: what is searched.
        folder: the folder of the sweep.
        make_workers: returns where the runs are executed.
        say: called with sentences for the user.

    Raises:
        ConfigError: the search is not valid, or the folder holds another one.
        SweepStopped: a signal has stopped it.
    """
    config = search.config()
    definition = search.define(folder, config)
    with open_sweep(folder, definition) as (study, continues), stoppable() as signals, contextlib.ExitStack() as stack:
        workers = make_workers(folder)
        stack.callback(workers.close)
        asking = Asking(definition, search.space, study, workers.slots > 1)
        commands = Commands(definition, folder, config)
        say(_first_sentence(folder, definition, study, continues, min(workers.slots, definition.trials)))
        Driver(folder, definition, study, asking, commands, workers, say).run(signals)
        result = result_of(folder, study, definition)
        say(write_results(folder, result.best is not None))
        return result


def run_function(
    objective: Objective, space: Space, folder: SweepFolder, definition: Definition, say: Callable[[str], None]
) -> SweepResult:
    """Runs a sweep of a function in this process, or continues it."""
    with open_sweep(folder, definition) as (study, continues):
        say(_first_sentence(folder, definition, study, continues, 1))
        search_function(objective, folder, study, Asking(definition, space, study, False), say)
        say(write_results(folder, False))
        return result_of(folder, study, definition)


@contextlib.contextmanager
def open_sweep(folder: SweepFolder, definition: Definition) -> Iterator[tuple[Study, bool]]:
    """Yields the study of a sweep, which this process alone may change, and whether the sweep continues."""
    make_sampler(definition.sampler, 0, 0, False)  # a missing library, before a folder is made
    with folder.locked():
        if definition.storage and not folder.exists() and has_study(definition.storage, definition.name):
            raise ConfigError(
                f"--storage: holds a study {definition.name} already. Choose another --workdir, whose last part is the "
                "name of the study."
            )
        continues = folder.agree(definition)
        if not definition.storage:
            repair_journal(folder.journal)
        try:
            yield Study(folder.storage(definition), folder.read().name, definition.direction), continues
        except OSError as error:  # Optuna's journal on a full disk
            text = f"{folder}: the sweep ended, since a file cannot be written ({error.strerror or error})"
            raise RunError(f"{text}. Free some space; the same command then continues it.") from error


def _first_sentence(folder: SweepFolder, definition: Definition, study: Study, continues: bool, slots: int) -> str:
    finished = sum(trial.state.is_finished() for trial in study.trials())
    trials = f"{definition.trials} trials, {slots} at a time"
    return f"{folder}: continues with {finished} of {trials}" if continues else f"{folder}: searches with {trials}"


@contextlib.contextmanager
def stoppable() -> Iterator[Signals]:
    """Yields the signals that stop a sweep; outside of the main thread none is received."""
    signals = Signals()
    if threading.current_thread() is threading.main_thread():
        with signals:
            yield signals
    else:
        yield signals


def result_of(folder: SweepFolder, study: Study, definition: Definition) -> SweepResult:
    """Returns the result of a sweep so far."""
    trials = study.trials()
    failed = sum(trial.state.name == "FAIL" for trial in trials)
    finished = sum(trial.state.is_finished() for trial in trials)
    best = next(iter(best_first(trials, definition.direction)), None)
    if best is None:
        return SweepResult(folder.path, definition.metric, finished, failed, None, None, {})
    values = {name: as_plain(value) for name, value in values_of(best).items()}
    return SweepResult(folder.path, definition.metric, finished, failed, best.number, best.value, values)
