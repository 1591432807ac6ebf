"""Predictions and evaluations of a run on the nodes of a Ray cluster, with the results of one process.

A dataset is split into parts, ranges of batches that do not depend on the number of workers. Each worker opens the run
once. Finished parts of predictions stay in a hidden folder next to the output until it is complete, so that a command
that was killed continues. The metrics of batches are merged in the order of the batches, as in one process.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.api.lineage import checkpoint_input
from engine.api.predictions import Columns
from engine.api.saved_evaluations import ReducedElsewhere, SavedEvaluations, log
from engine.api.saved_predictor import Request, SavedPredictor
from engine.base.errors import ConfigError, DataError
from engine.base.json_text import dumps
from engine.config.target import target_names
from engine.config.text import field_texts
from engine.data.source import BaseSource
from engine.datasets.given import is_stream_source
from engine.datasets.pool import Pool, ReportProgress, in_order
from engine.loop.evaluation import Evaluator, ReducedBatch
from engine.ray.parts import Parts, open_parts
from engine.run import code

PARTS, MOST_BATCHES = 256, 16  # about how many parts there are, and batches of a part, which fits into memory


@dataclass(frozen=True)
class Part:
    """Batches that one job computes: `start` to `stop - 1`."""

    start: int
    stop: int

    def __str__(self) -> str:
        return f"batches {self.start} to {self.stop - 1}"


def split(batches: int) -> list[Part]:
    """Returns the parts of so many batches."""
    size = max(1, min(MOST_BATCHES, batches // PARTS))
    return [Part(start, min(start + size, batches)) for start in range(0, batches, size)]


class PartPredictor:
    """Computes parts of predictions in a worker, which opens the run once."""

    def __init__(self, request: Request, source: BaseSource):
        self._request, self.source = request, source

    def __getstate__(self) -> dict[str, Any]:
        return {"_request": self._request}  # a worker makes the source from the request

    @functools.cached_property
    def _opened(self) -> SavedPredictor:
        return SavedPredictor(self._request, on_message=lambda text: None)

    def __call__(self, part: Part, report: ReportProgress) -> list[Columns]:
        done = part.start * self._opened.batch_size

        def count(examples: int) -> None:
            nonlocal done
            report(examples - done)
            done = examples

        with self._opened.errors_reported():
            return list(self._opened.run(count, range(part.start, part.stop)))


@dataclass(frozen=True)
class RayPredictions:
    """Computes predictions in the workers of a pool: the argument `compute` of `engine.predict`.

    Attributes:
        pool: the workers.
        out: the file that is written; parts are kept next to it. None keeps none.
        say: called with sentences for the user.
    """

    pool: Pool
    out: str | Path | None = None
    say: Callable[[str], None] = log

    @contextlib.contextmanager
    def __call__(self, opened: SavedPredictor, on_examples: Callable[[int], None]) -> Iterator[Iterable[Columns]]:
        check_independent(opened)
        parts = split(opened.predictor.batches)
        if self.out is None:
            yield (batch for found in in_order(self._results(opened, parts, on_examples, 0)) for batch in found)
            return
        with open_parts(Path(self.out), _key(opened, parts)) as kept:
            yield self._kept(opened, parts, kept, on_examples)

    def _kept(
        self, opened: SavedPredictor, parts: Sequence[Part], kept: Parts, on_examples: Callable[[int], None]
    ) -> Iterator[Columns]:
        """Computes the parts that are missing, and yields the batches of all."""
        missing = [number for number in range(len(parts)) if kept.load(number) is None]
        if len(missing) < len(parts):
            self.say(f"{len(parts) - len(missing)} of {len(parts)} parts were finished before")
        left = sum(_examples(opened, parts[number]) for number in missing)
        on_examples(done := opened.predictor.examples - left)
        for index, batches in self._results(opened, [parts[number] for number in missing], on_examples, done):
            kept.save(missing[index], batches)
        for number in range(len(parts)):
            if (batches := kept.load(number)) is None:
                raise DataError(f"{self.out}: a finished part was damaged or removed. Run the same command again.")
            yield from batches

    def _results(
        self, opened: SavedPredictor, parts: Sequence[Part], on_examples: Callable[[int], None], done: int
    ) -> Iterator[tuple[int, list[Columns]]]:
        def report(count: int) -> None:
            nonlocal done
            done += count
            on_examples(done)

        function = PartPredictor(opened.request, opened.predictor.source)
        if parts:
            usual = 1 if is_stream_source(function.source) else None
            yield from self.pool.run(function, parts, self.pool.count(len(parts), usual), report)


def check_independent(opened: SavedPredictor) -> None:
    """Raises ConfigError if a batch needs the one before it, so that parts cannot be computed alone."""
    if carried := opened.predictor.carried:
        raise ConfigError(
            f"--on=ray: {type(opened.task).__name__}.predict carries {', '.join(carried)} from batch to batch, so the "
            "batches cannot be split. Predict on this machine, without --on=ray."
        )


def _examples(opened: SavedPredictor, part: Part) -> int:
    """Returns the number of examples of a part."""
    return min(part.stop * opened.batch_size, opened.predictor.examples) - part.start * opened.batch_size


def _key(opened: SavedPredictor, parts: Sequence[Part]) -> str:
    """Returns what the bytes of parts depend on: a command that continues must find the same."""
    found = code.describe(target_names(opened.config), 0)
    return dumps(
        {
            "checkpoint": checkpoint_input(opened.saved, opened.step).id,
            "config": field_texts(opened.config),
            "data": [opened.where, opened.predictor.source.fingerprint(), opened.predictor.examples],
            "batch_size": opened.batch_size,
            "fields": list(opened.request.fields),
            "parts": len(parts),
            "code": [found.commit, found.dirty, found.packages],
        }
    )


@dataclass(frozen=True)
class EvaluationPart(Part):
    """Batches of an evaluation of a checkpoint."""

    step: int
    name: str

    def __str__(self) -> str:
        return f"{super().__str__()} of {self.name} at step {self.step}"


class PartEvaluator:
    """Reduces parts of evaluations in a worker, which opens the run once."""

    def __init__(self, evaluations: SavedEvaluations):
        self._arguments = evaluations.arguments
        self.source: BaseSource = _Sources(evaluations.sources)

    def __getstate__(self) -> dict[str, Any]:
        return {"_arguments": self._arguments}  # a worker makes the sources from the arguments

    @functools.cached_property
    def _opened(self) -> SavedEvaluations:
        return SavedEvaluations(**self._arguments)

    def __call__(self, part: EvaluationPart, report: ReportProgress) -> list[ReducedBatch]:
        return self._opened.reduce(part.step, part.name, range(part.start, part.stop))


class _Sources(BaseSource):
    """The sources of all evaluations, so that a worker checks whether it sees their files."""

    def __init__(self, sources: Mapping[str, BaseSource]):
        self.sources = dict(sources)

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Any:
        raise IndexError(index)


@dataclass(frozen=True)
class RayEvaluations:
    """Computes evaluations in the workers of a pool: the argument `compute` of `run_steps`.

    Attributes:
        pool: the workers.
    """

    pool: Pool

    @contextlib.contextmanager
    def __call__(self, evaluations: SavedEvaluations, steps: Sequence[int]) -> Iterator[ReducedElsewhere]:
        jobs: list[EvaluationPart] = []
        for step in steps:
            for evaluation in evaluations.evaluations:
                if evaluation.inseparable:
                    raise ConfigError(
                        f"--on=ray: {evaluation.inseparable}, so the batches cannot be split. Evaluate on this "
                        "machine, without --on=ray."
                    )
                parts = split(evaluation.batches)
                jobs += [EvaluationPart(part.start, part.stop, step, evaluation.name) for part in parts]
        usual = 1 if any(map(is_stream_source, evaluations.sources.values())) else None
        workers = self.pool.count(len(jobs), usual)
        running = self.pool.run(PartEvaluator(evaluations), jobs, workers, lambda count: None)
        results = in_order(running)

        def reduced(step: int, evaluation: Evaluator) -> Iterator[ReducedBatch]:
            for _ in split(evaluation.batches):  # the jobs have the order of the calls
                yield from next(results)

        with contextlib.closing(running):
            yield reduced
