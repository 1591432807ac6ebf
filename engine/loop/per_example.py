"""The metrics of single examples of an evaluation, with the tags that name and group them, as the content of a file.

A tag is an entry of the examples, or what a function of an example returns. Tags are read from the batches on the host,
so the compiled program is the same with and without them. Each process reads those of its rows, and the primary gathers
them after the last batch.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from engine.base.errors import ConfigError, TaskError, did_you_mean
from engine.base.types import PyTree
from engine.cluster import group, timeouts
from engine.cluster.peer_failure import LostPeer
from engine.config.schema import Evaluation, Target
from engine.config.target import check, first_parameter, resolve
from engine.data.batch import Batch
from engine.data.collate import stack_examples
from engine.data.examples import leaves_with_path
from engine.data.source import BaseSource, first_example
from engine.metrics.example_file import check_storable, file_of
from engine.metrics.results import Result
from engine.metrics.slices import KEY, Addresses, SlicedMerger, SlicedStates
from engine.metrics.values import describe_value
from engine.training.author_errors import errors_described

TOGETHER = 4096  # examples of a process whose tags are in one message
LONGEST = 1024  # characters of a text: a tag is a name, and the size of a file has a limit


class PerExample:
    """Collects the tags of an evaluation, and makes its file.

    Args:
        config: config section of the evaluation.
        source: the examples.
        states: the metrics.
        where: path of the section, for error texts.

    Raises:
        ConfigError: pyarrow is missing, a file would be too large, or a tag names nothing that exists.
        TaskError: a metric cannot be stored, or a tag is neither a number nor a text.
    """

    def __init__(self, config: Evaluation, source: BaseSource, states: SlicedStates, where: str):
        self._tags: dict[str, _Tag] = {}
        self._where, self._source = where, source
        if config.tags:
            examples = stack_examples([first_example(source)], str)
            self._tags = {name: _Tag(given, examples, f"{where}.tags.{name}") for name, given in config.tags.items()}
        size = sum(tag.first.nbytes for tag in self._tags.values())
        check_storable(states.abstract, len(source), where, size)
        self._indices: list[np.ndarray] = []  # of the examples of each batch
        self._values: dict[str, list[np.ndarray]] = {}  # tag -> its values in each batch

    @property
    def reads_batches(self) -> bool:
        """Whether `add` needs the batches, with their text."""
        return bool(self._tags)

    def start(self) -> None:
        """Forgets the tags of an earlier evaluation, which may have been interrupted."""
        self._indices, self._values = [], {name: [] for name in self._tags}

    def add(self, batch: Batch, positions: np.ndarray, addresses: Addresses) -> None:
        """Reads the tags of a host batch.

        Args:
            batch: the rows of this process, with their text.
            positions: positions of the rows in the evaluation, int64 `[rows]`.
            addresses: gives the indices of the examples at positions.
        """
        rows = np.flatnonzero(batch.weight)
        if not self._tags or not len(rows):
            return
        indices = addresses(positions[rows])
        self._indices.append(indices)
        for name, tag in self._tags.items():
            self._values[name].append(tag.values(batch.examples, rows, indices))

    def results(self, name: str, step: int, merged: SlicedMerger) -> dict[str, Result]:
        """Returns the file of an evaluation as its result, in the primary. Every process calls it.

        Args:
            name: name of the evaluation.
            step: step of the weights.
            merged: its states, after all batches.
        """
        indices, values = self._gathered() if self._tags else (np.zeros(0, np.int64), {})
        if not group.is_primary():
            return {}
        found = merged.each()
        order = np.argsort(indices, kind="stable")  # a row that several processes feed is there several times
        at = order[np.searchsorted(indices, found.indices, sorter=order)] if values else order
        tags = {tag: column[at] for tag, column in values.items()}
        if KEY in tags:
            self._check_keys(tags[KEY], found.indices)
        found = dataclasses.replace(found, tags=tags, content=self._source.fingerprint())
        return dict(file_of(name, step, found))

    def _check_keys(self, keys: np.ndarray, indices: np.ndarray) -> None:
        """Warns if two examples have one key, which cannot identify them."""
        order = np.argsort(keys, kind="stable")
        equal = np.flatnonzero(keys[order][1:] == keys[order][:-1])
        if len(equal):
            one, other = order[equal[0] : equal[0] + 2]
            logging.getLogger("convoy").warning(
                "%s.tags.%s: examples %d and %d are both named %r, so that the key does not identify the examples. "
                "Choose an entry or a function that gives each example another value.",
                *(self._where, KEY, indices[one], indices[other], keys[one].item()),
            )

    def _gathered(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Returns the indices of the examples and their tags: in the primary those of all processes."""
        columns = {"": np.concatenate([np.zeros(0, np.int64), *self._indices])}
        columns |= {name: np.concatenate([tag.first[:0], *self._values[name]]) for name, tag in self._tags.items()}
        if group.count() > 1:
            columns = _gather(columns)
        return columns.pop(""), columns


def _gather(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the rows of the columns of all processes, in the primary."""
    topic = "the tags of examples"
    size = len(next(iter(columns.values())))
    most = group.decide(size, lambda sizes, absent: max(sizes.values()), topic, timeouts.AGREE_S)
    parts = {name: [column[:0]] for name, column in columns.items()}
    for begin in range(0, most, TOGETHER):
        rows = {name: column[begin : begin + TOGETHER] for name, column in columns.items()}
        mine = {name: [column.dtype.str, column.tolist()] for name, column in rows.items()}
        found = group.gather(mine, topic, timeouts.AGREE_S)
        if group.is_primary() and (missing := group.missing(found)):
            raise LostPeer(f"process 0 has waited {timeouts.AGREE_S:g} s for {topic} of process {missing[0]}.")
        for theirs in found.values():
            for name, (dtype, values) in theirs.items():
                parts[name].append(np.array(values, dtype))
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


class _Tag:
    """Reads a tag.

    Args:
        given: path of an entry of the examples, such as "scene/name", or dotted path of a function of an example.
        examples: a host batch of one example, with its text.
        where: its config field, for error texts.
    """

    def __init__(self, given: object, examples: PyTree, where: str):
        self._where = where
        if not isinstance(given, str) or not given:
            raise ConfigError(f"{where} = {given!r}: {_ALLOWED}")
        self._path, self._function = given, None
        paths = [path for path, _ in leaves_with_path(examples)]
        if given not in paths and "." in given:
            target = Target(target=given)
            check(target, where, given=first_parameter(target, where))
            self._function: Callable[[PyTree], Any] | None = resolve(target, where)
        elif given not in paths:
            raise ConfigError(
                f"{where} = {given!r}: the examples have no such entry.{did_you_mean(given, paths)} Entries here: "
                f"{', '.join(paths)}. {_ALLOWED}"
            )
        only = np.zeros(1, np.int64)
        found = self._read(examples, only)
        self._is_text = isinstance(_scalar(found[0]), str | bytes)
        self.first = self._array(found, only)
        """Its value in the first example, `[1]`."""

    def values(self, examples: PyTree, rows: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Returns the values of some rows of a host batch, `[rows]`: numbers, or text of NumPy's kind U.

        Args:
            examples: the host batch, with its text.
            rows: the rows.
            indices: indices of their examples in the dataset, for error texts.

        Raises:
            TaskError: the function fails, or a value is not a number or a text as that of the first example is.
        """
        return self._array(self._read(examples, rows), indices)

    def _read(self, examples: PyTree, rows: np.ndarray) -> Sequence[Any]:
        if self._function is None:
            column = dict(leaves_with_path(examples))[self._path]
            return [column[row] for row in rows.tolist()]
        leaves, structure = jax.tree.flatten(examples)
        results = []
        for row in rows.tolist():
            example = jax.tree.unflatten(structure, [leaf[row] for leaf in leaves])
            with errors_described(f"{self._where}: {self._path}", example=example):
                results.append(self._function(example))
        return results

    def _array(self, values: Sequence[Any], indices: np.ndarray) -> np.ndarray:
        values = list(map(_scalar, values))
        for value, index in zip(values, indices, strict=True):
            is_text = isinstance(value, str | bytes)
            if not is_text and not _is_number(value):
                raise TaskError(f"{self._where}: found {describe_value(value)} in example {index}. {_ALLOWED}")
            if is_text != self._is_text:
                kinds = ("a text", "a number")
                raise TaskError(
                    f"{self._where}: found {kinds[not is_text]} in example {index}, and {kinds[is_text]} in the first "
                    "one. Give the same kind for each example."
                )
            if is_text and len(value) > LONGEST:
                raise TaskError(
                    f"{self._where}: found a text of {len(value):,} characters in example {index}. Allowed are "
                    f"{LONGEST:,}: a tag is a name, such as that of a scene."
                )
        return np.array([_text(value) for value in values], str) if self._is_text else np.array(values)


_ALLOWED = (
    "A tag is the name of an entry of the examples, or the dotted path of a function of an example, that gives one "
    "number of at most 64 bits, or one text, for each example."
)


def _scalar(value: Any) -> Any:
    """Returns a number or a text in an array without dimensions as the number or the text."""
    return value[()] if isinstance(value, np.ndarray | jax.Array) and value.ndim == 0 else value


def _is_number(value: Any) -> bool:
    """Whether a value is a number that a file can hold."""
    if isinstance(value, int | np.integer):
        return -(2**63) <= int(value) < 2**63
    return isinstance(value, float | np.bool | np.floating)


def _text(value: str | bytes) -> str:
    """Returns a text that can be stored: without bytes that are no UTF-8, and without NUL, which NumPy would drop."""
    raw = value if isinstance(value, bytes) else value.encode("utf-8", "backslashreplace")
    return raw.decode("utf-8", "backslashreplace").replace("\0", "\\x00")
