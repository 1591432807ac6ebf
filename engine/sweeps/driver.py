"""The driver of a sweep: starts the runs of trials, reports their results to Optuna, prunes, continues after a kill.

What counts is in Optuna's storage and in the run directories. The driver itself keeps nothing that a restart needs: a
running trial is started again, resumes from its checkpoint, and ends at once if it was finished.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from engine.base.errors import ConfigError, ConvoyError, did_you_mean
from engine.checkpoint.store import CheckpointStore
from engine.cluster.exit_status import ExitStatus
from engine.launch.signals import Signals
from engine.launch.supervisor import Exit, Supervisor
from engine.run.directory import RunDirectory
from engine.sweeps import study as attributes
from engine.sweeps import timeouts
from engine.sweeps.asking import Asking
from engine.sweeps.commands import Commands
from engine.sweeps.decisions import read_decision, write_decision
from engine.sweeps.folder import Definition, SweepFolder
from engine.sweeps.study import Study
from engine.sweeps.trials import (
    Ended,
    SeedRun,
    Trial,
    failure_of,
    is_done,
    kind_of,
    mean_of,
    new_results,
    problem_of,
    read_end,
)
from engine.sweeps.workers import Job, Workers

RESTARTS = 10
"""Restarts of a run that was killed or lost, before its trial counts as failed."""


class SweepStopped(ConvoyError):
    """A signal has stopped the sweep; the same command continues it."""


class Driver:
    """Runs the trials of a sweep until all are finished.

    Args:
        folder: the folder of the sweep, which this process has locked.
        definition: the definition of the sweep.
        study: Optuna's study.
        asking: creates trials, and decides which are pruned.
        commands: makes the command of each run.
        workers: executes runs.
        say: called with sentences for the user.
    """

    def __init__(
        self,
        folder: SweepFolder,
        definition: Definition,
        study: Study,
        asking: Asking,
        commands: Commands,
        workers: Workers,
        say: Callable[[str], None],
    ):
        self._folder, self._definition, self._study = folder, definition, study
        self._asking, self._commands, self._workers = asking, commands, workers
        self._say = say
        self._waiting: list[SeedRun] = []
        self._running: dict[str, SeedRun] = {}
        self._trials: dict[int, Trial] = {}

    def run(self, signals: Signals) -> None:
        """Runs all trials that are not finished.

        Raises:
            SweepStopped: a signal was received. The runs have saved.
        """
        for frozen in self._study.recover():
            began = frozen.datetime_start.timestamp() if frozen.datetime_start else time.time()
            self._add(Trial(frozen.number, attributes.values_of(frozen), began))
            self._say(f"trial {frozen.number} continues")
        while True:
            self._start_jobs()
            if not self._running and not self._waiting:
                return
            signals.wait(self._workers.poll_s)
            if signals.received:
                self._stop(signals)
            for run in self._running.values():
                self._report(run)
            for name, code in self._workers.ended().items():
                self._end(self._running.pop(name), code)

    def _start_jobs(self) -> None:
        """Starts runs while there are free slots: those that wait, then those of new trials."""
        while len(self._running) < self._workers.slots:
            now = time.monotonic()
            run = next((run for run in self._waiting if run.start_at <= now), None)
            if run is not None:
                self._waiting.remove(run)
                if is_done(run.job.run):  # the driver was killed before it had recorded the end
                    self._end(run, ExitStatus.DONE)
                    continue
                self._workers.start(run.job)
                self._running[run.job.name] = run
                continue
            asked = self._asking.ask()
            if asked is None:
                return
            self._add(Trial(*asked, began=time.time()))

    def _add(self, trial: Trial) -> None:
        """Adds the runs of a trial: all seeds, or the first one if it may be pruned."""
        self._trials[trial.number] = trial
        seeds = self._definition.seeds
        try:
            for run in self._seed_runs(trial, 1 if self._definition.prune else seeds):
                trial.runs.append(run)
                self._waiting.append(run)
        except ConvoyError as error:
            self._waiting = [run for run in self._waiting if run.trial != trial.number]
            self._fail(trial, str(error).rstrip("."))

    def _seed_runs(self, trial: Trial, count: int) -> Iterator[SeedRun]:
        """Yields the next runs of a trial, up to `count` in all."""
        for seed in range(len(trial.runs), count):
            seeds = self._definition.seeds
            path = self._folder.run(trial.number, seed, seeds)
            job = Job(self._folder.job_name(trial.number, seed, seeds), [], path)
            job = Job(job.name, self._commands.words(trial.values, seed, job), path)
            supervisor = Supervisor(_checkpoint(job), max_restarts=RESTARTS)
            yield SeedRun(trial.number, seed, job, supervisor)

    def _report(self, run: SeedRun) -> None:
        """Reports the evaluations of a run to Optuna, and decides whether it is pruned. Only the first seed counts."""
        if run.seed or run.trial not in self._trials:  # Optuna takes no values of a trial that has failed
            return
        file = self._folder.decision(run.job)
        for step, value in new_results(run, self._definition.metric):
            run.reported = step
            is_new = self._study.report(run.trial, step, value)
            if self._definition.prune and step > read_decision(file)[0]:  # else an earlier driver has decided
                prune = is_new and self._asking.should_prune(run.trial)
                write_decision(file, step, prune)
                if prune:
                    return

    def _end(self, run: SeedRun, code: int) -> None:
        """Decides what follows from the end of a run: its trial continues or ends, or the run is started again."""
        if (trial := self._trials.get(run.trial)) is None:  # another seed of it has failed
            return
        self._report(run)
        if code != ExitStatus.DONE:
            self._after_failure(run, trial, code)
            return
        ended = read_end(run.job.run, self._definition.metric)
        if ended.value is None:
            raise _not_measured(run, self._definition.metric, ended)
        if not math.isfinite(ended.value):
            self._fail(trial, f"{self._definition.metric} is {ended.value} at step {ended.step}")
            return
        run.value = ended.value
        if self._is_pruned(run, ended):
            self._prune(trial)
            return
        if len(trial.runs) < self._definition.seeds:
            more = list(self._seed_runs(trial, self._definition.seeds))
            trial.runs += more
            self._waiting += more
        elif all(each.value is not None for each in trial.runs):
            self._complete(trial)

    def _is_pruned(self, run: SeedRun, ended: Ended) -> bool:
        return bool(self._definition.prune) and ended.is_early and read_decision(self._folder.decision(run.job))[1]

    def _after_failure(self, run: SeedRun, trial: Trial, code: int) -> None:
        problem = problem_of(run, self._folder.logs / f"{run.job.name}.log", code)
        decision = run.supervisor.after(failure_of(run, problem, code))
        if isinstance(decision, Exit):
            self._fail(trial, problem)
            return
        run.start_at = time.monotonic() + decision.wait_s
        self._waiting.append(run)
        self._say(f"{run.job.name} ended with {code} and is started again in {decision.wait_s:g} s: {problem}.")

    def _complete(self, trial: Trial) -> None:
        values = [run.value for run in trial.runs if run.value is not None]
        mean, interval = mean_of(values)
        found = self._attributes(trial) | {attributes.RESULTS: values, attributes.INTERVAL: interval}
        self._study.complete(trial.number, mean, found)
        self._forget(trial, f"{self._definition.metric} {mean:.4g}")

    def _prune(self, trial: Trial) -> None:
        values = [run.value for run in trial.runs if run.value is not None]
        self._study.prune(trial.number, self._attributes(trial) | {attributes.RESULTS: values})
        last = trial.runs[0].reported
        self._forget(trial, f"pruned at step {last} with {self._definition.metric} {values[0]:.4g}")

    def _fail(self, trial: Trial, problem: str) -> None:
        """Ends a trial as failed, and stops its other runs."""
        for run in trial.runs:
            if run.job.name in self._running:
                self._workers.stop(run.job.name)
        self._waiting = [run for run in self._waiting if run.trial != trial.number]
        kind = kind_of(problem)
        found = self._attributes(trial) | {attributes.PROBLEM: problem, attributes.KIND: kind}
        self._study.fail(trial.number, found)
        self._forget(trial, f"{kind}: {problem}")

    def _attributes(self, trial: Trial) -> dict[str, Any]:
        paths = [run.job.run for run in trial.runs]
        return {
            attributes.RUNS: [str(path.relative_to(self._folder.path)) for path in paths],
            attributes.STEPS: sum(read_end(path, "").step for path in paths if path.exists()),
            attributes.SECONDS: round(time.time() - trial.began, 3),
        }

    def _forget(self, trial: Trial, text: str) -> None:
        """Removes a trial that has ended, and says how."""
        self._trials.pop(trial.number, None)
        values = ", ".join(f"{name.rpartition('.')[2]}={value}" for name, value in trial.values.items())
        done = sum(found.state.is_finished() for found in self._study.trials())
        self._say(f"trial {trial.number} ({values}): {text}. {done} of {self._definition.trials} trials are finished.")

    def _stop(self, signals: Signals) -> None:
        """Asks all runs to save and end, and waits for them, unless they outlive the driver. Raises SweepStopped."""
        if self._running and not self._workers.outlive_driver:
            self._say(f"stopping: {len(self._running)} runs save and end")
            for name in self._running:
                self._workers.stop(name)
        end = time.monotonic() + timeouts.STOP_S
        asked = len(signals.received)
        while self._running and not self._workers.outlive_driver and time.monotonic() < end:
            time.sleep(self._workers.poll_s)
            if len(signals.received) > asked:  # a second signal
                break
            for run in self._running.values():
                self._report(run)  # a run may wait for a decision
            for name, code in self._workers.ended().items():
                run = self._running.pop(name)
                if code == ExitStatus.DONE:
                    self._end(run, code)
        rest = f" {len(self._running)} of its jobs still run." if self._running else ""
        stopped = SweepStopped(f"{self._folder}: the sweep was stopped.{rest} The same command continues it.")
        stopped.exit_code = ExitStatus.INTERRUPTED if signal.SIGINT in signals.received else ExitStatus.RETRY
        raise stopped


def _not_measured(run: SeedRun, metric: str, ended: Ended) -> ConfigError:
    """Returns the error that ends a sweep whose runs do not have its metric."""
    names = [name for name in ended.metrics if "/" in name]
    near = did_you_mean(metric, names)
    return ConfigError(f"--metric={metric}: {run.job.run} has not measured it.{near} It has: {', '.join(names)}.")


def _checkpoint(job: Job) -> int | None:
    return CheckpointStore(RunDirectory(job.run).checkpoints).latest()
