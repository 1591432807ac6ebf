"""The predictions of a trained run over a dataset, ready to be computed: in this process, or in parts in others."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.api.predictions import Columns, Predictor
from engine.api.saved_evaluations import log
from engine.api.saved_program import open_program
from engine.api.saved_run import SavedRun
from engine.base.errors import ConfigError, did_you_mean
from engine.cluster import group, peer_failure
from engine.compile.build import build_task
from engine.compile.out_of_memory import out_of_memory_reported
from engine.config.instances import section_of
from engine.config.schema import Config, Data
from engine.config.target import check
from engine.data.adapt import Readable, build_source, limit_source
from engine.data.source import BaseSource
from engine.training.figures import check_figure
from engine.training.state import Weights
from engine.training.task import Task, for_sources


@dataclasses.dataclass(frozen=True)
class Request:
    """Which predictions a caller wants.

    Attributes:
        run: the run directory.
        data: a source, or a config section; None: the data of an evaluation of the run.
        evaluation: name of that evaluation; needed if the run has several.
        step: step of the checkpoint, "latest", "best" or None.
        task: the Task, if the run was started with a Task object.
        batch_size: rows per batch; None: that of the evaluation, or `train.global_batch_size`.
        overrides: changes of the run's config.
        fields: entries of the examples that become columns.
    """

    run: str | Path
    data: Readable | Mapping[str, Any] | None = None
    evaluation: str | None = None
    step: int | str | None = None
    task: Task | None = None
    batch_size: int | None = None
    overrides: Sequence[str] = ()
    fields: Sequence[str] = ()


class SavedPredictor:
    """The predictor of a run on one checkpoint.

    Args:
        request: which predictions.
        figures: number of figures that the caller draws.
        on_message: called with sentences for the user.

    Raises:
        CheckpointError: there is no such checkpoint.
        TaskError: the Task has no valid `predict`, or no figure that is asked for.
        ConfigError, DataError: the data cannot be chosen or read.
    """

    def __init__(self, request: Request, figures: int = 0, on_message: Callable[[str], None] = log):
        self.saved = saved = SavedRun(request.run)
        name, config = _config(saved, request.data, request.evaluation, request.overrides)
        section = config.data if name is None else config.evaluations[name].data
        self.config, self.where = config, "data" if name is None else f"evaluations.{name}.data"
        with saved.code_importable(config.task, config.evaluations):
            self.task = task = build_task(config.task) if request.task is None else request.task
            if figures:
                check_figure(task, f"figures = {figures}")
            if isinstance(request.data, Mapping) or request.data is None:
                check(section, self.where)
        evaluation_size = config.evaluations[name].batch_size if name else None
        self.batch_size = size = request.batch_size or evaluation_size or config.train.global_batch_size
        self._mesh, program = open_program(task, config, request.overrides, [size], on_message)
        source = _source(request.data, section, self.where)
        role = "predict" if name is None else self.where
        self._program = program = dataclasses.replace(program, task=for_sources(task, {role: source}))
        with self.errors_reported():
            self.step = group.run_on_primary(lambda: saved.choose(request.step), "the choice of the checkpoint")
            if group.is_primary():
                chosen = saved.describe_choice(self.step, request.step)
                on_message(f"predicting with {saved.directory} at {chosen}")
            self.predictor = Predictor(source, section, program, size, self.where, request.fields)
        self.request = dataclasses.replace(request, step=self.step, batch_size=size)
        """The request, with the step and the batch size that were chosen."""

    def run(self, on_examples: Callable[[int], None], numbers: range | None = None) -> Generator[Columns]:
        """Loads the weights once, and returns the columns of consecutive examples; otherwise as `Predictor.run`.

        Args:
            on_examples: called with the number of finished examples.
            numbers: consecutive numbers of the batches; None: all of them.
        """
        return self.predictor.run(self._weights, on_examples, numbers)

    @functools.cached_property
    def _weights(self) -> Weights:
        return self.saved.weights(self.step, self._program)

    @contextlib.contextmanager
    def errors_reported(self) -> Iterator[None]:
        """Explains the errors of programs and of lost processes inside."""
        with out_of_memory_reported(self.config.train, self._mesh), peer_failure.lost_peers_reported():
            yield


def _config(
    saved: SavedRun, data: Readable | Mapping[str, Any] | None, evaluation: str | None, overrides: Sequence[str]
) -> tuple[str | None, Config]:
    """Returns the name of the evaluation whose data is read, and the config; the name is None for `config.data`."""
    given = [text for text in overrides if text.startswith("data.")]
    if data is not None or any(text.startswith("data.target=") for text in given):
        if evaluation is not None:
            raise ConfigError(f"evaluation = {evaluation!r}: other data is given too. Choose one of the two.")
        section = data if data is None or isinstance(data, Mapping) else section_of(data)
        return None, saved.changed_config(overrides, data=section)
    names = saved.changed_config([text for text in overrides if text not in given]).evaluations
    if evaluation is None and len(names) == 1:
        evaluation = next(iter(names))
    if evaluation not in names:
        found = f"evaluation = {evaluation!r}: no such evaluation." if evaluation else "predict: no data is chosen."
        near = did_you_mean(evaluation, names) if evaluation else ""
        listed = f"name an evaluation of the run ({', '.join(names)})" if names else "the run has no evaluations"
        advice = "--data.target=package.module.Name, or data=... in Python"
        raise ConfigError(f"{found}{near} Give a dataset, {advice}; {listed}: --evaluation=NAME.")
    renamed = [f"evaluations.{evaluation}.{text}" if text in given else text for text in overrides]
    return evaluation, saved.changed_config(renamed)


def _source(data: Readable | Mapping[str, Any] | None, section: Data, where: str) -> BaseSource:
    if data is None or isinstance(data, Mapping):
        return build_source(section, where, finite=True)
    return limit_source(data, section, "data", finite=True)
