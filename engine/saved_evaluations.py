"""Evaluations of the checkpoints of a run, apart from its training, and their results in `evaluations.jsonl`.

They do not take the lease of the run, so they may run while it trains. A result is one line: step, evaluation, metrics,
the settings that differ from those of the run, and the time.
"""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.cluster import group, peer_failure
from engine.cluster.exit_status import ExitStatus, is_retried
from engine.config.errors import CheckpointError, ConfigError, RunError
from engine.config.schema import Config
from engine.config.target import check
from engine.config.text import flatten, value_text
from engine.config.text_file import read_text
from engine.data.source import Source, build_source, check_source, fingerprint
from engine.loop.evaluation import build_evaluations
from engine.metrics.results import Result, json_values
from engine.resilience.out_of_memory import out_of_memory_reported
from engine.run import status
from engine.run.directory import RunDirectory
from engine.run.json_text import dumps, now
from engine.run.jsonl import open_for_append
from engine.saved.run import SavedRun
from engine.saved_program import open_program
from engine.training.build import build_task
from engine.training.task import Task

POLL_S, SLOW_POLL_S = 1.0, 10.0  # between two polls of a run that has no new checkpoint: at first, and at last
# Settings that change how an evaluation is computed, but not its result beyond rounding.
NOT_COMPARED = ("mesh.", "sharding.", "cache.", "log.", "data.")


@dataclasses.dataclass(frozen=True)
class StoredResults:
    """One line of `evaluations.jsonl`."""

    step: int
    evaluation: str
    metrics: Mapping[str, Any]
    settings: Mapping[str, str]
    time: str = ""


class SavedEvaluations:
    """The compiled evaluations of a run.

    Args:
        run: the run directory.
        task: the Task, if the run was started with a Task object.
        overrides: changes of the run's config, each "evaluations.test.batch_size=64".
        data: a source for each evaluation that reads another one than in the config; new names are new evaluations.
        on_message: called with sentences for the user.

    Raises:
        ConfigError: the run has no evaluations, or an override changes something else.
    """

    def __init__(
        self,
        run: str | Path,
        *,
        task: Task | None = None,
        overrides: Sequence[str] = (),
        data: Mapping[str, Source] | None = None,
        on_message: Callable[[str], None] = lambda text: None,
    ):
        self.saved, self.say, data = SavedRun(run), on_message, data or {}
        config = self.saved.changed_config(overrides, evaluation_data=data)
        if not config.evaluations:
            raise ConfigError(
                f"{self.saved.directory.config}: no evaluations. Add one: --evaluations.NAME.data.target=..., or in "
                "the config of the run, evaluations.<name>.data."
            )
        for name, source in data.items():
            check_source(source, f"evaluation_data[{name!r}]")
        with self.saved.code_importable(config):
            for name, section in config.evaluations.items():
                if name not in data:
                    check(section.data, f"evaluations.{name}.data")
            task = build_task(config) if task is None else task
        batch_size, self._sections = config.train.global_batch_size, config.evaluations
        sizes = [section.batch_size or batch_size for section in self._sections.values()]
        config, program = open_program(task, config, overrides, sizes, self.say)
        sources = {
            name: data[name] if name in data else build_source(section.data, f"evaluations.{name}.data")
            for name, section in self._sections.items()
        }
        self._settings = _settings(self.saved.config, config, data)
        self.program = dataclasses.replace(program, total_steps=self.saved.total_steps or 1)
        self._evaluations = build_evaluations(self._sections, sources, self.program, batch_size)
        self._config, self._warned = config, False

    def run(self, step: int, only: Sequence[str] | None = None) -> dict[str, Result]:
        """Runs the evaluations on the checkpoint of a step, stores the results, and returns "step" and the metrics.

        Args:
            step: of the checkpoint; the same in every process.
            only: names of the evaluations; None: all.
        """
        train, mesh = self._config.train, self._config.mesh
        results: dict[str, Result] = {"step": step}
        with out_of_memory_reported(train, mesh), peer_failure.lost_peers_reported():
            weights = self.saved.weights(step, self.program)
            for evaluation in self._evaluations:
                if only is not None and evaluation.name not in only:
                    continue
                found = evaluation.run(weights, step=step) or {}
                results |= found
                if group.is_primary():
                    self._store(
                        StoredResults(step, evaluation.name, json_values(found), self._settings[evaluation.name], now())
                    )
        return results

    def missing(self, step: int, known: Sequence[StoredResults]) -> list[str]:
        """Returns the evaluations that have no result for a step with these settings."""
        stored = [(result.evaluation, dict(result.settings)) for result in known if result.step == step]
        return [name for name in self._sections if (name, self._settings[name]) not in stored]

    def _store(self, result: StoredResults) -> None:
        """Appends a line; says so once if the run directory cannot be written."""
        path = self.saved.directory.evaluations
        try:
            file = open_for_append(path)
            try:
                os.write(file, f"{dumps(dataclasses.asdict(result))}\n".encode())
            finally:
                os.close(file)
        except OSError as error:
            if not self._warned:
                self._warned = True
                self.say(f"{path}: cannot be written ({error.strerror or error}), so the results are not stored.")


def read_results(path: Path) -> list[StoredResults]:
    """Returns the results in a file; lines that are not results are left out. Raises RunError if it cannot be read."""
    try:
        lines = read_text(path).splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or error}). Move the file away.") from error
    found = []
    for line in lines:
        try:
            entry = json.loads(line)
            found.append(
                StoredResults(
                    int(entry["step"]), entry["evaluation"], entry["metrics"], dict(entry["settings"]), entry["time"]
                )
            )
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return found


def _settings(before: Config, now_: Config, data: Mapping[str, Source]) -> dict[str, dict[str, str]]:
    """Returns evaluation -> the settings that differ from those of the run, by field."""
    old = {name: value_text(name, value) for name, value in flatten(before)}
    new = {name: value_text(name, value) for name, value in flatten(now_)}
    changed = {
        name: new.get(name, "none")
        for name in {**old, **new}
        if old.get(name) != new.get(name) and not name.startswith(NOT_COMPARED)
    }
    own = {}
    for name in now_.evaluations:
        prefix = f"evaluations.{name}."
        own[name] = {
            field: text for field, text in changed.items() if field.startswith(prefix) or "evaluations." not in field
        }
        if name in data:
            own[name][f"{prefix}data"] = f"an object with the content {fingerprint(data[name])}"
    return own


def choose_steps(saved: SavedRun, steps: str | Sequence[int | str | None]) -> list[int]:
    """Returns the steps for "100,200,latest", "all", or a list, each once. Raises CheckpointError."""
    words = steps.split(",") if isinstance(steps, str) else list(steps)
    if words == ["all"]:
        return saved.steps() or [saved.choose("latest")]
    return list(dict.fromkeys(saved.choose(word.strip() if isinstance(word, str) else word) for word in words))


def follow(
    run: str | Path,
    *,
    task: Task | None = None,
    evaluation_data: Mapping[str, Source] | None = None,
    overrides: Sequence[str] = (),
    on_results: Callable[[dict[str, Result]], None] = lambda results: None,
    on_message: Callable[[str], None] = lambda text: None,
) -> None:
    """Evaluates each checkpoint of a run once, also those that it still writes, until the run is done.

    A step is left out if `evaluations.jsonl` has its results with the same settings, so a restart continues.

    Args:
        run: the run directory, in which the training may not have started yet.
        task: the Task, if the run was started with a Task object.
        evaluation_data: as for `evaluate`.
        overrides: as for `evaluate`.
        on_results: called with "step" and the metrics of each step.
        on_message: called with sentences for the user.

    Raises:
        RunError: the run has failed; its exit code is that of the run.
    """
    directory = RunDirectory(run)
    if not has_begun(directory):
        on_message(f"waiting for a run to start in {directory}")
    while not has_begun(directory):
        time.sleep(POLL_S)
    evaluations = SavedEvaluations(run, task=task, overrides=overrides, data=evaluation_data, on_message=on_message)
    follower, pause = Follower(evaluations), POLL_S
    while True:
        step, names, end = group.run_on_primary(follower.next, "the next checkpoint to evaluate")
        if step is not None:
            pause = POLL_S
            try:
                on_results(evaluations.run(step, names))
            except CheckpointError:
                if not group.run_on_primary(lambda step=step: follower.was_deleted(step), "the checkpoints"):
                    raise
                on_message(f"step {step} was deleted before its evaluation. A larger checkpoint.keep_latest keeps it.")
        elif end:
            on_message(end)
            return
        else:
            time.sleep(pause)
            pause = min(1.2 * pause, SLOW_POLL_S)


def has_begun(directory: RunDirectory) -> bool:
    """Whether the config of a run and its number of steps are known; the context of its evaluations needs both."""
    if not directory.exists():
        return False
    try:
        found = status.read(directory.status)
    except RunError:  # `Follower` waits for a status that can be read
        return True
    return found.total_steps is not None or found.state not in status.RUNNING


class Follower:
    """Decides what to evaluate next, in the primary."""

    def __init__(self, evaluations: SavedEvaluations):
        self._evaluations, self._saved = evaluations, evaluations.saved
        self._taken: set[int] = set()  # by this process: a result may not be stored, or the step deleted
        self._reported = ""

    def next(self) -> tuple[int | None, list[str], str]:
        """Returns the next step and its evaluations, or how the run has ended; neither if nothing is due.

        Raises:
            RunError: the run has failed.
        """
        state = self._status()  # before the steps: a run that is done writes no more
        known = read_results(self._saved.directory.evaluations)
        for step in self._saved.steps():
            names = self._evaluations.missing(step, known)
            if names and step not in self._taken:
                self._taken.add(step)
                return step, names, ""
        if state is None or state.state in status.RUNNING or is_retried(state.exit_code or 0):
            self._report_wait(state)
            return None, [], ""
        if state.state == "done":
            return None, [], f"the run is done at step {state.step}, and all of its checkpoints are evaluated"
        error = RunError(
            f"{self._saved.directory}: all checkpoints are evaluated, but the run has ended at step {state.step} with "
            f"exit code {state.exit_code}: {state.reason} After it is resumed, the same command continues."
        )
        error.exit_code = state.exit_code or ExitStatus.USER_ERROR
        raise error

    def _report_wait(self, state: status.Status | None) -> None:
        """Says once that the run was killed, or has ended with an exit code after which it is restarted."""
        text = ""
        with contextlib.suppress(RunError):
            text = status.missing_end(self._saved.directory.status)
        if state is not None and state.state not in status.RUNNING:
            ended = f"attempt {state.attempt} has ended at step {state.step} with exit code {state.exit_code}"
            text = f"{ended}. The same command resumes it. {state.reason}".strip()
        if text and text != self._reported:
            self._reported = text
            self._evaluations.say(f"waiting: {text}")

    def _status(self) -> status.Status | None:
        try:
            return status.read(self._saved.directory.status)
        except RunError:  # it has not been written yet, or the storage fails for a moment
            return None

    def was_deleted(self, step: int) -> bool:
        """Whether a checkpoint no longer exists."""
        return step not in self._saved.steps()
