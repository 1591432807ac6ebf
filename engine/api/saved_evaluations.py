"""Evaluations of the checkpoints of a run, apart from its training, and their results in `evaluations.jsonl`.

They do not take the lease of the run, so they may run while it trains. A result is one line: step, evaluation, metrics,
the settings of the evaluation, and the time.
"""

import dataclasses
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from engine.api.saved_program import open_program
from engine.api.saved_run import SavedRun
from engine.base.errors import ConfigError, RunError
from engine.base.json_text import dumps, now, read_lines
from engine.cluster import group, peer_failure
from engine.compile.build import build_task
from engine.compile.out_of_memory import out_of_memory_reported
from engine.config.target import check
from engine.config.text import field_texts
from engine.config.zoo import current_settings
from engine.data.adapt import Readable, build_source, limit_source
from engine.data.source import BaseSource
from engine.loop.evaluation import Evaluator, ReducedBatch
from engine.loop.evaluations import build_evaluations
from engine.metrics.results import Image, Result, json_values
from engine.observe.figure_files import write_figures
from engine.run.jsonl import open_for_append
from engine.storage.mounts import address_of_copy, shown
from engine.training.state import Weights
from engine.training.task import Task, for_sources

_WARNING = "warning: "  # how a sentence for the user begins that is one

type ReducedElsewhere = Callable[[int, Evaluator], Iterable[ReducedBatch]]
"""Gets a step and an evaluation; returns the metrics of all its batches, in order."""
type OnBatch = Callable[[str, int, int], None]

# Settings that change how an evaluation is computed, but not its result beyond rounding.
NOT_COMPARED = ("mesh.", "sharding.", "cache.", "log.", "data.")
SCHEDULE = ("every", "at_start", "at_end")  # settings of an evaluation that only choose its steps
LISTING = ("worst", "score", "worst_mode", "figures", "per_example", "tags")  # settings that change no metric


def log(text: str) -> None:
    """Logs a sentence for the user: as a warning where it begins with "warning: ", else as information."""
    level = logging.WARNING if text.startswith(_WARNING) else logging.INFO
    logging.getLogger("convoy").log(level, text.removeprefix(_WARNING))


@dataclasses.dataclass(frozen=True)
class StoredResults:
    """One line of `evaluations.jsonl`.

    Attributes:
        step: step of the checkpoint.
        evaluation: name of the evaluation.
        metrics: full name -> result.
        settings: settings that differ from those of the run.
        section: all settings of the evaluation that may change its result, since those of the run may change.
        time: when it was stored.
    """

    step: int
    evaluation: str
    metrics: Mapping[str, Any]
    settings: Mapping[str, str]
    section: Mapping[str, str] = dataclasses.field(default_factory=dict)
    time: str = ""


class SavedEvaluations:
    """The compiled evaluations of a run.

    Args:
        run: the run directory.
        task: the Task, if the run was started with a Task object.
        overrides: changes of the run's config, each "evaluations.test.batch_size=64".
        data: a source for each evaluation that reads another one than in the config; new names are new evaluations.
        on_message: called with sentences for the user.
        on_batch: called with the name of an evaluation, and the number of its finished batches and of all.

    Raises:
        ConfigError: the run has no evaluations, or an override changes something else.
    """

    def __init__(
        self,
        run: str | Path,
        *,
        task: Task | None = None,
        overrides: Sequence[str] = (),
        data: Mapping[str, Readable] | None = None,
        on_message: Callable[[str], None] = lambda text: None,
        on_batch: OnBatch = lambda name, done, total: None,
    ):
        self.saved, self.say, data = SavedRun(run), on_message, data or {}
        self.arguments = {"run": run, "task": task, "overrides": overrides, "data": data}
        """What makes the same evaluations in another process."""
        self._on_batch = on_batch
        config = self.saved.changed_config(overrides, evaluation_data=data)
        if not config.evaluations:
            raise ConfigError(
                f"{self.saved.directory.config}: no evaluations. Add one: --evaluations.NAME.data.target=..., or in "
                "the config of the run, evaluations.<name>.data."
            )
        data = {
            name: limit_source(found, config.evaluations[name].data, f"evaluation_data[{name!r}]", finite=True)
            for name, found in data.items()
        }
        with self.saved.code_importable(config.task, config.evaluations):
            for name, section in config.evaluations.items():
                if name not in data:
                    check(section.data, f"evaluations.{name}.data")
            task = build_task(config.task) if task is None else task
        batch_size, self._sections = config.train.global_batch_size, config.evaluations
        sizes = [section.batch_size or batch_size for section in self._sections.values()]
        mesh, program = open_program(task, config, overrides, sizes, self.say)
        sources = {
            name: data[name] if name in data else build_source(section.data, f"evaluations.{name}.data", finite=True)
            for name, section in self._sections.items()
        }
        self._settings = _settings(field_texts(self.saved.config), field_texts(config), config.evaluations, data)
        """Evaluation -> what is stored as `settings` and `section`."""
        task = for_sources(task, {f"evaluations.{name}.data": source for name, source in sources.items()})
        self.program = dataclasses.replace(program, task=task, total_steps=self.saved.total_steps or 1)
        self.sources: Mapping[str, BaseSource] = sources
        """Evaluation -> its examples."""
        self.evaluations = build_evaluations(self._sections, sources, self.program, batch_size)
        for evaluation in self.evaluations:
            evaluation.check_rows()
            for text in evaluation.warnings:
                self.say(f"warning: {text}")
        self._train, self._mesh, self._warned = config.train, mesh, False
        self._loaded: tuple[int, Weights] | None = None

    def run(
        self, step: int, only: Sequence[str] | None = None, reduced: ReducedElsewhere | None = None
    ) -> dict[str, Result]:
        """Runs the evaluations on the checkpoint of a step, stores the results, and returns "step" and the metrics.

        Args:
            step: step of the checkpoint; the same in every process.
            only: names of the evaluations; None: all.
            reduced: gives the metrics of the batches of an evaluation, which are computed elsewhere. None: here.

        Raises:
            ConvoyError: the Task cannot draw a figure. Every process raises it, after the results are stored.
        """
        results: dict[str, Result] = {"step": step}
        with out_of_memory_reported(self._train, self._mesh), peer_failure.lost_peers_reported():
            here = reduced is None or any(section.figures for section in self._sections.values())
            weights = self._weights(step) if here else Weights({}, {})
            for evaluation in self.evaluations:
                if only is not None and evaluation.name not in only:
                    continue
                count = self._counted(evaluation)
                batches = None if reduced is None else _counting(reduced(step, evaluation), count)
                found = evaluation.run(weights, on_progress=count, step=step, reduced=batches) or {}
                results |= found
                if group.is_primary():
                    settings, section = self._settings[evaluation.name]
                    self._store(
                        StoredResults(step, evaluation.name, json_values(found), settings, section, now()), found
                    )
                if evaluation.figure_error is not None:  # in every process; the results are stored
                    raise evaluation.figure_error
        return results

    def reduce(self, step: int, name: str, numbers: range) -> list[ReducedBatch]:
        """Returns the metrics of some batches of an evaluation, as numpy arrays; otherwise as `Evaluator.reduce`."""
        [evaluation] = [evaluation for evaluation in self.evaluations if evaluation.name == name]
        with out_of_memory_reported(self._train, self._mesh):
            return [jax.device_get(found) for found in evaluation.reduce(self._weights(step), step, numbers)]

    def _weights(self, step: int) -> Weights:
        """Returns the weights of a checkpoint; those of the latest one are kept."""
        if self._loaded is None or self._loaded[0] != step:
            self._loaded = None  # frees its memory first
            self._loaded = step, self.saved.weights(step, self.program)
        return self._loaded[1]

    def _counted(self, evaluation: Evaluator) -> Callable[[], None]:
        """Returns a function that reports one more batch each time it is called, until the last one."""
        name, total, numbers = evaluation.name, evaluation.batches, iter(range(1, evaluation.batches + 1))

        def count() -> None:
            if done := next(numbers, 0):  # the figures and tables that follow are no batches
                self._on_batch(name, done, total)

        return count

    def missing(self, step: int, known: Sequence[StoredResults]) -> list[str]:
        """Returns the evaluations that have no result for a step with these settings."""
        stored = [(r.evaluation, (dict(r.settings), dict(r.section))) for r in known if r.step == step]
        return [name for name in self._sections if (name, self._settings[name]) not in stored]

    def _store(self, result: StoredResults, found: Mapping[str, Result]) -> None:
        """Appends a line and writes the figures; says so once if the run directory cannot be written."""
        path = self.saved.directory.evaluations
        if address_of_copy(path) is not None:
            if not self._warned:
                self._warned = True
                self.say(f"{_WARNING}{shown(path)}: is read without a mount, so the results are not stored.")
            return
        try:
            file = open_for_append(path)
            try:
                os.write(file, f"{dumps(dataclasses.asdict(result))}\n".encode())
            finally:
                os.close(file)
            path = self.saved.directory.figures
            write_figures(path, found, result.step)
            if any(isinstance(value, Image) and value.file for value in found.values()):
                self.say(f"figures of step {result.step}: {path / result.evaluation / str(result.step)}")
        except OSError as error:
            if not self._warned:
                self._warned = True
                what = "results" if path == self.saved.directory.evaluations else "figures"
                self.say(
                    f"{_WARNING}{path}: cannot be written ({error.strerror or error}), so the {what} are not stored."
                )


def _counting(batches: Iterable[ReducedBatch], count: Callable[[], None]) -> Iterator[ReducedBatch]:
    """Yields batches, and counts each."""
    for batch in batches:
        yield batch
        count()


_SHAPE = {
    "step": int, "evaluation": str, "metrics": {str: object}, "settings": {str: str}, "section?": {str: str},
    "time": str,
}  # fmt: skip


def read_results(path: Path, say: Callable[[str], None] = lambda text: None) -> list[StoredResults]:
    """Returns the results in a file.

    Args:
        path: the file.
        say: called with a sentence about damaged lines, which are skipped.

    Raises:
        RunError: the file cannot be read.
    """
    try:
        found = read_lines(path, _SHAPE)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or error}). Move the file away.") from error
    if note := found.note(shown(path)):
        say(f"warning: {note}")
    for fields in found.values:
        for part in ("settings", "section"):
            fields[part] = current_settings(fields.get(part, {}))
    return [StoredResults(**fields) for fields in found.values]


def _settings(
    old: Mapping[str, str], new: Mapping[str, str], names: Collection[str], data: Mapping[str, BaseSource]
) -> dict[str, tuple[dict[str, str], dict[str, str]]]:
    """Returns evaluation -> the settings that differ from those of the run, and those of the evaluation, by field.

    Args:
        old: field -> text, of the config of the run.
        new: field -> text, of the config for these evaluations.
        names: the evaluations.
        data: sources that replace those of the config, by evaluation.
    """
    changed = {
        name: new.get(name, "none")
        for name in {**old, **new}
        if old.get(name) != new.get(name) and not name.startswith(NOT_COMPARED)
    }
    found = {}
    for name in names:
        prefix = f"evaluations.{name}."
        own = {
            field: text for field, text in changed.items() if field.startswith(prefix) or "evaluations." not in field
        }
        if name in data:
            own[f"{prefix}data"] = f"an object with the content {data[name].fingerprint()}"
        section = {field.removeprefix(prefix): text for field, text in new.items() if field.startswith(prefix)}
        found[name] = (
            own,
            {field: text for field, text in section.items() if field.partition(".")[0] not in (*SCHEDULE, *LISTING)},
        )
    return found


def choose_steps(saved: SavedRun, steps: str | Sequence[int | str | None]) -> list[int]:
    """Returns the steps for "100,200,latest", "all", or a list, each once. Raises CheckpointError."""
    words = steps.split(",") if isinstance(steps, str) else list(steps)
    if words == ["all"]:
        return saved.steps() or [saved.choose("latest")]
    return list(dict.fromkeys(saved.choose(word.strip() if isinstance(word, str) else word) for word in words))
