"""`convoy evaluate --follow`: evaluates each checkpoint of a run once, in a job of its own, while the run trains."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from engine.api.saved_evaluations import SavedEvaluations, StoredResults, read_results
from engine.api.saved_run import SavedRun
from engine.base import formatting
from engine.base.duration import CLOCK_UNITS, Duration
from engine.base.errors import CheckpointError, ConvoyError, FieldError, RunError
from engine.checkpoint.integrity import DamagedCheckpoints
from engine.checkpoint.manifest import DamagedCheckpoint, shorten
from engine.cluster import group
from engine.cluster.exit_status import ExitStatus, is_retried
from engine.config.schema import Config
from engine.data.adapt import Readable
from engine.metrics.results import Result
from engine.run import status
from engine.run.directory import RunDirectory
from engine.storage.mounts import local_path, shown
from engine.training.task import Task

POLL_S, SLOW_POLL_S = 1.0, 10.0  # between two polls of a run that has no new checkpoint: at first, and at last
UNREADABLE_POLLS = 8  # in a row in which the results cannot be read, before that is an error: 16 to 80 s
REPORT_S = 600.0  # without a sign of life of the run, until the first report; each report doubles the time to the next


def follow(
    run: str | Path,
    *,
    task: Task | None = None,
    evaluation_data: Mapping[str, Readable] | None = None,
    overrides: Sequence[str] = (),
    timeout: str | None = None,
    on_results: Callable[[dict[str, Result]], None] = lambda results: None,
    on_message: Callable[[str], None] = lambda text: None,
) -> None:
    """Evaluates each checkpoint of a run once, also those that it still writes, until the run is done.

    A step is left out if `evaluations.jsonl` has its results with the same settings, so a restart continues. If the run
    is resumed with another config, or started again with `--fresh`, that config is used from then on.

    Args:
        run: the run directory, in which the training may not have started yet.
        task: the Task, if the run was started with a Task object.
        evaluation_data: as for `evaluate`.
        overrides: as for `evaluate`.
        timeout: how long to wait for a run that does not change, such as "2 hours"; None: without a limit.
        on_results: called with "step" and the metrics of each step.
        on_message: called with sentences for the user.

    Raises:
        RunError: the run has failed, and its exit code is that of the run; or the run has not changed for too long.
        DamagedCheckpoints: the run is done, and some of its checkpoints could not be evaluated.
        ConfigError: `timeout` is not a time.
    """
    run = local_path(run)  # a bucket is mounted: a copy would not show later checkpoints
    directory, wait = RunDirectory(run), Wait(shown(run), timeout, on_message)
    if not has_begun(directory):
        on_message(f"waiting for a run to start in {directory}")
    while not group.run_on_primary(
        lambda: has_begun(directory) or wait.poll(*_read_status(directory)), "the begin of the run"
    ):
        time.sleep(POLL_S)
    given = {"task": task, "overrides": overrides, "data": evaluation_data, "on_message": on_message}
    follower, pause = Follower(SavedEvaluations(run, **given), wait), POLL_S
    while True:
        action, step, names, text = group.run_on_primary(follower.next, "the next checkpoint to evaluate")
        if action == DONE:
            on_message(text)
            return
        if action == RELOAD:
            on_message("the run was started with another config, which is used from now on")
            follower = Follower(SavedEvaluations(run, **given), wait)
        elif action == EVALUATE:
            pause = POLL_S
            follower.evaluate(step, names, on_results)
        else:
            time.sleep(pause)
            pause = min(1.2 * pause, SLOW_POLL_S)


def has_begun(directory: RunDirectory) -> bool:
    """Whether the config of a run and its number of steps are known; the context of its evaluations needs both."""
    if not directory.exists():
        return False
    found, _ = _read_status(directory)  # None: `Follower` waits for a status that can be read
    return found is None or found.total_steps is not None or found.state not in status.RUNNING


def _read_status(directory: RunDirectory) -> tuple[status.Status | None, str]:
    """Returns the status, or None and why there is none: it is not written yet, is damaged, or the storage fails."""
    try:
        return status.read(directory.status), ""
    except RunError as error:
        return None, str(error) if directory.status.exists() else ""


EVALUATE, RELOAD, WAIT, DONE = "evaluate", "reload", "wait", "done"
"""What to do next."""


class Follower:
    """Decides what to evaluate next, in the primary, and evaluates it.

    Args:
        evaluations: the evaluations of the run.
        wait: measures how long nothing has changed.
    """

    def __init__(self, evaluations: SavedEvaluations, wait: "Wait"):
        self.evaluations, self.saved, self._wait = evaluations, evaluations.saved, wait
        self.damaged: list[int] = []  # steps that could not be evaluated
        self._taken: set[int] = set()  # by this process: a result may not be stored, or the step deleted
        self._reported: set[str] = set()  # sentences that were said
        self._unreadable = 0  # polls in a row in which the results could not be read

    def next(self) -> tuple[str, int, list[str], str]:
        """Returns what to do next; a step and its evaluations to run, or how the run has ended.

        Raises:
            RunError: the run has failed, its results still cannot be read, or the wait takes too long.
            DamagedCheckpoints: the run is done, and some of its steps could not be evaluated.
        """
        state, why = _read_status(self.saved.directory)  # before the steps: a run that is done writes no more
        if self._stored_config() != self.saved.config:
            if has_begun(self.saved.directory):
                return RELOAD, 0, [], ""
            self._wait.poll(state, why)
            return WAIT, 0, [], ""
        try:
            known, steps = self._results(), self.saved.steps()
        except RunError as error:  # the storage fails for a moment, or reading is not permitted
            if self._unreadable > UNREADABLE_POLLS:
                raise
            self._wait.poll(state, str(error))
            return WAIT, 0, [], ""
        self._taken.intersection_update(steps)  # a run that is started again with --fresh writes these steps again
        for step in steps:
            names = self.evaluations.missing(step, known)
            if names and step not in self._taken:
                self._taken.add(step)
                self._wait.restart()
                return EVALUATE, step, names, ""
        if state is None or state.state in status.RUNNING or is_retried(state.exit_code or 0):
            self._report_end(state)
            self._wait.poll(state, why)
            return WAIT, 0, [], ""
        return DONE, 0, [], self._end(state, steps)

    def _end(self, state: status.Status, steps: Sequence[int]) -> str:
        """Returns how a run is done; raises an error if it has failed, or if a checkpoint is not evaluated."""
        evaluated = "all of its checkpoints are evaluated"
        left_out = [step for step in self.damaged if step in steps] + self.saved.incomplete()
        if left_out:
            evaluated = f"its checkpoints are evaluated except for damaged ones: step {', '.join(map(str, left_out))}"
        if state.state != "done":
            error = RunError(
                f"{self.saved.directory}: {evaluated}, but the run has ended at step {state.step} with exit code "
                f"{state.exit_code}: {state.reason} After it is resumed, the same command continues."
            )
            error.exit_code = state.exit_code or ExitStatus.USER_ERROR
            raise error
        if left_out:
            raise DamagedCheckpoints(
                f"{self.saved.directory}: the run is done at step {state.step}, and {evaluated}. Copy their files from "
                "a backup; the same command then evaluates them."
            )
        return f"the run is done at step {state.step}, and {evaluated}"

    def evaluate(self, step: int, names: Sequence[str], on_results: Callable[[dict[str, Result]], None]) -> None:
        """Evaluates a step, in every process; says why, if it is deleted or damaged. The run continues then too."""
        say = self.evaluations.say
        try:
            on_results(self.evaluations.run(step, names))
        except DamagedCheckpoint as error:  # in every process
            self.damaged.append(step)
            say(f"step {step} is left out, since it is damaged: {shorten(error.problems)}")
        except CheckpointError:
            if group.run_on_primary(self.saved.steps, "the checkpoints").count(step):
                raise
            say(f"step {step} was deleted before its evaluation. A larger checkpoint.keep_latest keeps it.")

    def _results(self) -> list[StoredResults]:
        """Returns the stored results, and counts how often in a row they cannot be read. Raises RunError then."""
        self._unreadable += 1
        found = read_results(self.saved.directory.evaluations, self._say_once)
        self._unreadable = 0
        return found

    def _report_end(self, state: status.Status | None) -> None:
        """Says once that the run was killed, or has ended with an exit code after which it is restarted."""
        text = ""
        with contextlib.suppress(RunError):
            text = status.missing_end(self.saved.directory.status)
        if state is not None and state.state not in status.RUNNING:
            ended = f"attempt {state.attempt} has ended at step {state.step} with exit code {state.exit_code}"
            text = f"{ended}. The same command resumes it. {state.reason}".strip()
        if text:
            self._say_once(f"waiting: {text}")

    def _say_once(self, text: str) -> None:
        if text not in self._reported:
            self._reported.add(text)
            self.evaluations.say(text)

    def _stored_config(self) -> Config:
        """Returns the config of the run, which may be resumed with another one."""
        try:
            return SavedRun(self.saved.directory.path).config
        except ConvoyError:  # the storage fails for a moment
            return self.saved.config


class Wait:
    """How long a run has not changed: reports it at growing intervals, and ends the wait after the timeout.

    Args:
        run: name of the run, for the texts.
        timeout: a time, such as "2 hours"; None: without a limit.
        say: called with sentences for the user.
        clock: returns seconds.

    Raises:
        ConfigError: `timeout` is not a time.
    """

    def __init__(
        self, run: str, timeout: str | None, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ):
        self._run, self._say, self._clock = run, say, clock
        self._timeout_s = None if timeout is None else _seconds(timeout)
        self._updated = ""  # as the status says
        self.restart()

    def restart(self) -> None:
        """Counts from now: the run has changed, or its checkpoint was evaluated meanwhile."""
        self._since, self._report_s = self._clock(), REPORT_S

    def poll(self, state: status.Status | None, problem: str = "") -> bool:
        """Reports a long wait; returns False. Raises RunError after the timeout.

        Args:
            state: the status; None if it cannot be read.
            problem: which file cannot be read, as a sentence.
        """
        updated = "" if state is None else state.updated
        if updated != self._updated:
            self._updated = updated
            self.restart()
        seconds = self._clock() - self._since
        found = "it has no status" if state is None else f"its status is {state.state} at step {state.step}"
        text = f"the run has not been updated for {formatting.duration(seconds)}: {problem.rstrip('.') or found}"
        if self._timeout_s is not None and seconds >= self._timeout_s:
            raise RunError(f"{self._run}: {text}. After it is resumed, the same command continues.")
        if seconds >= self._report_s:
            self._report_s = 2 * seconds
            self._say(f"waiting: {text}")
        return False


def _seconds(timeout: str) -> float:
    """Returns the seconds of a time. Raises FieldError for other texts."""
    found = Duration.parse(timeout, "timeout", tuple(CLOCK_UNITS))
    if not found.is_clock or not found.value:
        raise FieldError("timeout", f"found {timeout!r}", f"Allowed: a time above 0 in {', '.join(CLOCK_UNITS)}.")
    return found.seconds
