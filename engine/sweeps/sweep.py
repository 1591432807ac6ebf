"""Searches settings of a config, or of a function, with Optuna: `engine.sweep`."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.base.errors import ConfigError, did_you_mean
from engine.config.loading import load
from engine.config.schema import Config, Plain
from engine.config.text import field_texts
from engine.launch.signals import Signals
from engine.metrics.direction import mode_of
from engine.sweeps.budget import Budget
from engine.sweeps.driver import Driver
from engine.sweeps.folder import Definition, SweepFolder
from engine.sweeps.space import Space, overrides
from engine.sweeps.study import (
    PRUNERS,
    SAMPLERS,
    Study,
    best_first,
    make_pruner,
    make_sampler,
    repair_journal,
    values_of,
)
from engine.sweeps.workers import Job, Workers

if TYPE_CHECKING:
    import optuna

HOOK = "sweep"
"""Name of the hook of each trial."""
DEFAULT_TRIALS, DEFAULT_FACTOR = 20, 3


@dataclass(frozen=True)
class SweepResult:
    """What a sweep has found."""

    folder: Path
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
        """Checks the search; returns its definition.

        Raises:
            ConfigError: a value is not allowed, or the config does not measure the metric.
        """
        for name, value, allowed in (("--sampler", self.sampler, SAMPLERS), ("--prune", self.prune, ("", *PRUNERS))):
            if value not in allowed:
                names = ", ".join(filter(None, allowed))
                raise ConfigError(f"{name}={value}: unknown.{did_you_mean(value, allowed)} Allowed: {names}.")
        for name, value in (("--trials", self.trials), ("--seeds", self.seeds)):
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: allowed is a whole number from 1.")
        if self.rung < 0:
            raise ConfigError(f"--rung={self.rung}: allowed is a step from 1, or 0 for the first evaluation.")
        if self.factor < 2:
            raise ConfigError(f"--factor={self.factor}: allowed is a whole number from 2.")
        metric = self.metric or str(config.checkpoint.best or "")
        _check_metric(metric, config, bool(self.prune))
        Budget.parse(self.budget)
        points = len(self.space.grid()) if self.sampler == "grid" else None
        trials = self.trials or points or DEFAULT_TRIALS
        mode = config.checkpoint.best_mode if self.mode == "auto" and metric == config.checkpoint.best else self.mode
        return Definition(
            name=folder.path.name,
            reference=self.reference,
            overrides=list(self.overrides),
            config=field_texts(config),
            space=self.space.to_texts(),
            metric=metric,
            direction=mode_of(mode, metric),
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


class ConfigPlan:
    """Creates the trials of a sweep of a config, and the commands of their runs."""

    def __init__(self, search: Search, definition: Definition, folder: SweepFolder, study: Study, config: Config):
        self._search, self._definition, self._folder, self._study = search, definition, folder, study
        self._config, self._budget = config, Budget.parse(search.budget)
        self._points = [dict(point) for point in search.space.grid()] if search.sampler == "grid" else None
        self._pruner: optuna.pruners.BasePruner | None = None
        self.parallel = False
        """Whether several trials run at once."""

    def ask(self) -> tuple[int, dict[str, Plain]] | None:
        """Creates the next trial; None if there are as many as the definition asks for."""
        before = self._study.trials()
        if len(before) >= self._definition.trials:
            return None
        space, fixed = self._search.space, None
        if self._points is not None:
            used = [values_of(trial) for trial in before]
            point = next((point for point in self._points if _plain(point) not in used), None)
            if point is None:
                return None
            fixed = space.params(point)
        sampler = make_sampler(self._search.sampler, self._search.seed, len(before), self.parallel)
        return self._study.ask(space.suggest, sampler, fixed)

    def words(self, values: dict[str, Plain], seed: int, job: Job) -> list[str]:
        """Returns the words after `convoy` of a run."""
        mine = [*self._search.overrides, *overrides(values)]
        mine += self._budget.overrides(self._search.reference, mine)
        if self._search.seeds > 1:
            mine.append(f"train.seed={(self._config.train.seed + seed) % 2**32}")
        hook = self._hook(seed, job)
        load(self._search.reference, [*mine, *hook])  # a value that the config refuses fails the trial at once
        return [
            "train",
            f"--config={self._search.reference}",
            *(f"--config.{text}" for text in [*mine, *hook]),
            f"--workdir={job.run}",
        ]

    def _hook(self, seed: int, job: Job) -> list[str]:
        """Returns the overrides that add the hook of the trial, if it has a task there."""
        arguments = {}
        if self._search.prune and seed == 0:
            arguments["decisions"] = str(self._folder.decision(job))
        if self._budget.seconds is not None:
            arguments |= {"seconds": str(self._budget.seconds), "clock": str(self._folder.clock(job))}
        if not arguments:
            return []
        evaluation = self._config.evaluations.get(self._definition.metric.partition("/")[0])
        every = {} if evaluation is None or evaluation.every is None else {"every": str(evaluation.every)}
        fields = {"target": "engine.sweeps.pruning.Pruning", **every, **arguments}
        return [f"hooks.{HOOK}.{name}={value}" for name, value in fields.items()]

    def should_prune(self, trial: int) -> bool:
        """Returns whether Optuna's pruner ends a trial at the evaluation that was reported last."""
        if self._pruner is None:
            first = self._search.rung or self._study.first_step()
            self._pruner = make_pruner(self._search.prune, first, self._search.factor)
        return self._study.should_prune(trial, self._pruner)


def _plain(values: Mapping[str, Plain]) -> dict[str, Any]:
    """Returns values as JSON gives them back: tuples are lists."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def run_search(
    search: Search,
    folder: SweepFolder,
    make_workers: Callable[[SweepFolder], Workers],
    say: Callable[[str], None],
    on_change: Callable[[SweepFolder], None] = lambda folder: None,
) -> SweepResult:
    """Runs a sweep of a config, or continues it.

    Args:
        search: what is searched.
        folder: the folder of the sweep.
        make_workers: returns where the runs are executed.
        say: called with sentences for the user.
        on_change: called when a trial has ended.

    Raises:
        ConfigError: the search is not valid, or the folder holds another one.
        SweepStopped: a signal has stopped it.
    """
    config = search.config()
    definition = search.define(folder, config)
    with folder.locked(), stoppable() as signals, contextlib.ExitStack() as stack:
        continues = folder.agree(definition)
        if not definition.storage:
            repair_journal(folder.journal)
        study = Study(folder.storage(definition), definition.name, definition.direction)
        plan = ConfigPlan(search, definition, folder, study, config)
        workers = make_workers(folder)
        stack.callback(workers.close)
        plan.parallel = workers.slots > 1
        finished = sum(trial.state.is_finished() for trial in study.trials())
        verb = f"continues with {finished} of" if continues else "searches with"
        say(f"{folder} {verb} {definition.trials} trials, {min(workers.slots, definition.trials)} at a time")
        Driver(folder, definition, study, plan, workers, say, lambda: on_change(folder)).run(signals)
        return result_of(folder, study, definition.direction)


@contextlib.contextmanager
def stoppable() -> Iterator[Signals]:
    """Yields the signals that stop a sweep; outside of the main thread none is received."""
    signals = Signals()
    if threading.current_thread() is threading.main_thread():
        with signals:
            yield signals
    else:
        yield signals


def result_of(folder: SweepFolder, study: Study, direction: str) -> SweepResult:
    """Returns the result of a sweep so far."""
    trials = study.trials()
    failed = sum(trial.state.name == "FAIL" for trial in trials)
    finished = sum(trial.state.is_finished() for trial in trials)
    best = next(iter(best_first(trials, direction)), None)
    if best is None:
        return SweepResult(folder.path, finished, failed, None, None, {})
    return SweepResult(folder.path, finished, failed, best.number, best.value, values_of(best))
