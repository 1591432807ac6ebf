"""Predictions of a trained model over a dataset: each example exactly once, in the order of the source, on any mesh.

The text of the examples (`data/text.py`) passes through on the host, and `origins.py` says which examples a row holds.
In a run of several processes each process reads its rows, every process receives the arrays, and the primary gathers
the text.
"""

import base64
import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from engine.api.origins import Origins, ragged_fields
from engine.base.errors import TaskError
from engine.cluster import group
from engine.cluster.peer_failure import LostPeer
from engine.compile.evaluation_program import EvaluationProgram
from engine.compile.evaluation_step import with_rows_of
from engine.compile.memory_check import check_memory, evaluation_batches
from engine.compile.prediction_program import BATCH, prediction_step
from engine.config.schema import Data
from engine.data.batch import Batch
from engine.data.feed import EvaluationFeed, padding_text
from engine.data.source import BaseSource, example_spec, limited, source_text
from engine.data.text import text_columns
from engine.metrics.values import pad_rows
from engine.parallel.mesh import check_batch
from engine.training.state import Weights, evaluation_params
from engine.training.task import check_examples

type Columns = Mapping[str, np.ndarray]
"""Name -> one row per example: an array, or an array of objects for text."""

EXAMPLE = "example"  # column with the index of the example in the dataset
IN_FLIGHT = 2  # batches whose results are not waited for
GATHERED = 16  # batches whose text is gathered in one message
GATHER_S = 600.0  # until all processes have read the examples of these batches


class Predictor:
    """The predictions of a program's Task over a dataset.

    Args:
        source: the examples; `settings.limit` is applied.
        settings: how they are read.
        program: program with the Task.
        batch_size: rows per batch; the last batch is padded.
        where: config field of the dataset, for error texts.
        fields: entries of the examples that are kept with the predictions, such as labels.

    Raises:
        TaskError, ShardingError, DataError: the source, the Task and the mesh do not fit together.
        ConfigError: the batches do not fit into memory.
    """

    def __init__(
        self,
        source: BaseSource,
        settings: Data,
        program: EvaluationProgram,
        batch_size: int,
        where: str,
        fields: Sequence[str] = (),
    ):
        check_batch(program.mesh, batch_size, 1, "the batch size of predictions")
        source = limited(source, settings.limit)
        spec = example_spec(source)
        check_examples(program.task, spec, where)
        program = with_rows_of(program, source, batch_size, where)
        batches = evaluation_batches(where, settings, spec, batch_size, len(source))
        batches = dataclasses.replace(batches, field="batch_size", advice="a smaller batch size of predictions")
        self.warnings = check_memory(batches, program.mesh, program.abstract_weights(averaged=False).to_tree())
        self._program = program
        self.text = self._text = source_text(source)
        """Names of the text of the examples."""
        numbers = [name for name in dict.fromkeys([*ragged_fields(source, spec), *fields]) if name not in self.text]
        self._step, self._shapes = prediction_step(program, spec, batch_size, numbers)
        if padding := padding_text(source, batch_size):
            from engine.compile.row_check import check_predictions

            check_predictions(program, source, batch_size, padding)
        self.names = tuple(name for name in self._shapes if not name.startswith(BATCH))
        """Names of the predictions."""
        self.source = source
        """The examples, of which `examples` is the number."""
        self._origins = Origins(source)
        _check_names(self.names, self._text, self._origins.names, f"{type(program.task).__name__}.predict")
        self.examples, self._batch_size = len(source), batch_size
        self._feed = EvaluationFeed(
            source,
            settings,
            batch_size=batch_size,
            sharding=program.batch_sharding,
            keep_text=True,
            in_order=True,
        )

    @property
    def batches(self) -> int:
        """Number of batches."""
        return len(self._feed)

    @property
    def carried(self) -> tuple[str, ...]:
        """Paths of the model state that each batch takes from the batch before it."""
        return tuple(self._step.carried)

    def run(
        self,
        weights: Weights,
        on_batch: Callable[[int], None] = lambda done: None,
        numbers: range | None = None,
    ) -> Generator[Columns]:
        """Yields the columns of consecutive examples; the text columns only in the primary.

        Examples that cannot be read are left out if `data.on_error` is skip; the column `example` shows which. If the
        batches have several lengths, shorter predictions are padded with zeros to the largest.

        Args:
            weights: the weights; the averaged ones are used if they exist.
            on_batch: called with the number of finished examples.
            numbers: consecutive numbers of the batches; None: all of them.
        """
        first = 0 if numbers is None else numbers.start
        params, model_state = evaluation_params(weights, use_ema=True), dict(weights.model_state)
        model_state |= self._program.first_state(self._step.carried) if self._step.carried else {}
        waiting: deque[tuple[int, Any, dict[str, list[Any]]]] = deque()
        pending: list[tuple[dict[str, np.ndarray], dict[str, list[Any]]]] = []
        together = GATHERED if self._text and group.count() > 1 else 1
        with contextlib.closing(self._feed.with_host_batches(numbers)) as batches:
            for number, (placed, host) in enumerate(batches, first):
                *result, state = self._step(params, model_state, placed)
                model_state |= state
                waiting.append((number, result, self._text_of(host)))
                if len(waiting) > IN_FLIGHT:
                    pending.append(self._finish(*waiting.popleft(), on_batch))
                if len(pending) >= together:
                    yield from self._joined(pending)
                    pending = []
        pending += [self._finish(*entry, on_batch) for entry in waiting]
        yield from self._joined(pending)

    def _text_of(self, host: Batch) -> dict[str, list[Any]]:
        return text_columns(host.examples) if self._text else {}

    def _finish(
        self, number: int, result: Any, text: dict[str, list[Any]], on_batch: Callable[[int], None]
    ) -> tuple[dict[str, np.ndarray], dict[str, list[Any]]]:
        """Waits for a batch; returns its columns without padding, and the text of all rows of this process."""
        weight, found = jax.device_get(result)
        kept = np.flatnonzero(weight)
        first = number * self._batch_size
        on_batch(min(first + self._batch_size, self.examples))
        columns = {name: pad_rows(x[kept], self._shapes[name]) for name, x in found.items()}
        examples = (first + kept).astype(np.int64)
        return {EXAMPLE: examples, **self._origins.numbers(examples), **columns}, text

    def _joined(self, pending: list[tuple[dict[str, np.ndarray], dict[str, list[Any]]]]) -> Generator[Columns]:
        """Yields the columns of batches with their text."""
        texts = [text for _, text in pending]
        if self._text and group.count() > 1 and pending:
            texts = self._gather(texts)
        for (columns, _), text in zip(pending, texts, strict=True):
            if not group.is_primary():
                yield columns
                continue
            keys = self._origins.keys(columns[EXAMPLE].tolist())
            columns = {**columns, **{name: _objects(values) for name, values in keys.items()}}
            if not self._text:
                yield columns
                continue
            rows = self._feed.rows if group.count() == 1 else np.arange(self._batch_size)
            at = {int(row): i for i, row in enumerate(rows)}
            chosen = [at[int(example) % self._batch_size] for example in columns[EXAMPLE]]
            yield {**columns, **{name: _objects([values[i] for i in chosen]) for name, values in text.items()}}

    def _gather(self, texts: list[dict[str, list[Any]]]) -> list[dict[str, list[Any]]]:
        """Returns the text of all rows of the batches, in the primary; every process calls it."""
        mine = [{name: [_to_json(value) for value in values] for name, values in text.items()} for text in texts]
        found = group.gather([self._feed.rows.tolist(), mine], "the text of predictions", GATHER_S)
        if not group.is_primary():
            return texts
        if missing := group.missing(found):
            raise LostPeer(
                f"process 0 has waited {GATHER_S:g} s for process {missing[0]} to read its examples. Check why it is "
                "late, then start the same command again."
            )
        whole = [{name: [None] * self._batch_size for name in self._text} for _ in texts]
        for rows, batches in found.values():
            for target, text in zip(whole, batches, strict=True):
                for name, values in text.items():
                    for row, value in zip(rows, values, strict=True):
                        target[name][row] = _from_json(value)
        return whole


def _check_names(names: Iterable[str], text: list[str], own: Iterable[str], where: str) -> None:
    taken = dict.fromkeys(own, "a column of the engine")
    taken |= {EXAMPLE: "the index of the example", **dict.fromkeys(text, "text of the dataset")}
    for name in names:
        if name in taken:
            raise TaskError(f"{where}: the name {name!r} is {taken[name]}. Rename this prediction.")


def _objects(values: list[Any]) -> np.ndarray:
    column = np.empty(len(values), object)
    for i, value in enumerate(values):
        column[i] = value
    return column


def _to_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, np.ndarray):
        return {"array": [_to_json(item) for item in value.reshape(-1).tolist()], "shape": value.shape}
    return str(value)


def _from_json(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if "bytes" in value:
        return base64.b64decode(value["bytes"])
    items = [_from_json(item) for item in value["array"]]
    return np.array(items, None if items else str).reshape(value["shape"])
