"""Fills packed rows: of token documents, and of examples with any ragged fields.

`packing.py` plans which piece of which example lies in which row. Here a row is a list of pieces, in order.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from engine.base.errors import DataError
from engine.base.types import PyTree
from engine.base.user_errors import describe
from engine.data.examples import NUMERIC_KINDS
from engine.data.ragged.fields import Ragged, RaggedExample, check_index, costs, measured
from engine.data.ragged.packing_plan import SplitPlanner, WholePlanner
from engine.data.shared_arrays import zeros
from engine.data.source import SPEC_TRIES, BaseSource, Examples, leaves_with_path, source_name
from engine.data.stages import stage

TEXT = "UST"  # numpy dtype kinds of text
TOKEN_ARRAYS = {
    "tokens": np.int32,
    "targets": np.int32,
    "segment_ids": np.int32,
    "positions": np.int32,
    "weight": np.float32,
}


class Piece(NamedTuple):
    """A range of the elements of an example."""

    example: int
    start: int
    stop: int


type Planner = SplitPlanner | WholePlanner


class Rows(Protocol):
    """Contents of packed rows."""

    @property
    def planner(self) -> Planner:
        """Assigns the examples to rows."""
        ...

    @property
    def sizes(self) -> np.ndarray:
        """Space that each example needs in a row, int64 `[examples]`."""
        ...

    @property
    def space(self) -> int:
        """Elements for which a row has space, over all axes."""
        ...

    @property
    def elements(self) -> np.ndarray:
        """Elements of each example, over all axes, int64 `[examples]`."""
        ...

    def costs(self) -> np.ndarray:
        """Returns the cost of each example, float64 `[examples]`."""
        ...

    def fill(self, rows: Sequence[Sequence[Piece]]) -> Examples:
        """Returns the rows with these pieces, as arrays `[rows, ...]`. Raises DataError."""
        ...


class TokenRows:
    """Rows of token documents; `Packed` describes the entries."""

    def __init__(
        self,
        documents: BaseSource,
        length: int,
        split: bool,
        lengths: npt.ArrayLike | None,
        vocabulary: int | None = None,
    ):
        self._documents, self.space, self._vocabulary = documents, length, vocabulary
        self.sizes = self.elements = _length_index(documents, lengths, vocabulary)
        self.planner: Planner = (SplitPlanner if split else WholePlanner)(self.sizes, length)
        self._costs: np.ndarray | None = None

    def costs(self) -> np.ndarray:
        if self._costs is None:
            self._costs = costs(self._documents, self.sizes[None])
        return self._costs

    def fill(self, rows: Sequence[Sequence[Piece]]) -> Examples:
        batch = {name: zeros((len(rows), self.space), dtype) for name, dtype in TOKEN_ARRAYS.items()}
        with stage("collate"):
            for number, pieces in enumerate(rows):
                self._fill({name: array[number] for name, array in batch.items()}, pieces)
        return batch

    def _fill(self, row: dict[str, np.ndarray], pieces: Sequence[Piece]) -> None:
        """Writes pieces into a row: arrays `[length]` that are initially zero."""
        begin = 0  # index in the row at which the next piece begins
        for segment, (index, start, stop) in enumerate(pieces, 1):
            with stage("read"):
                tokens = _tokens(self._documents, index, self._vocabulary)
            if len(tokens) != self.sizes[index]:
                raise DataError(
                    f"{_document_name(self._documents, index)} has {len(tokens)} tokens, but its length index "
                    f"says {self.sizes[index]}. Compute the length index again."
                )
            end = begin + stop - start
            targets_end = begin + min(stop, len(tokens) - 1) - start  # the last token of a document has no target
            row["tokens"][begin:end] = tokens[start:stop]
            row["targets"][begin:targets_end] = tokens[start + 1 : stop + 1]
            row["segment_ids"][begin:end] = segment
            row["positions"][begin:end] = np.arange(stop - start)
            row["weight"][begin:targets_end] = 1
            begin = end


class FieldRows:
    """Rows of examples with ragged fields; `Packed` describes the entries.

    The planner knows one size of an example: the largest share of a row that it needs of any axis, in units of the
    longest axis. So if the sizes in a row fit, each axis fits.
    """

    def __init__(
        self,
        source: BaseSource,
        ragged: Ragged,
        lengths: tuple[int, ...],
        *,
        segments: int | None,
        split: bool,
        index: PyTree,
    ):
        self._source, self._ragged, self._lengths, self._split = source, ragged, lengths, split
        name = source_name(source)
        if not len(source):
            raise DataError(f"{name}: no examples. Packing needs at least one; check its files and arguments.")
        self._index = ragged.measure(source, index)
        self.elements, self.space, unit = self._index.sum(axis=0), sum(lengths), max(lengths)
        self.planner: Planner
        if split:
            self.sizes, self.segments = self._index[0], _most_pieces(self._index[0], unit)
            self.planner = SplitPlanner(self.sizes, unit)
        else:
            self._check_fit(name)
            shares = [-(-own * unit // length) for own, length in zip(self._index, lengths, strict=True)]
            least = 1 if segments is None else -(-unit // segments)  # an example without elements needs space, too
            self.sizes = np.maximum(np.max(shares, axis=0), least)
            self.planner = WholePlanner(self.sizes, unit)
            self.segments = segments or int(self.planner.pieces.max())
        self._costs: np.ndarray | None = None
        self._spec = self._first()
        self._signature = _signature(self._spec)
        self._flat = _flat_arrays(self._spec.rest)
        self._ascending = np.arange(max(lengths), dtype=np.int32)

    def _check_fit(self, name: str) -> None:
        if len(longer := np.flatnonzero((self._index > np.array(self._lengths)[:, None]).any(axis=0))):
            found = self._ragged.text(self._index[:, longer[0]].tolist())
            raise DataError(
                f"Example {longer[0]} of {name} has {found} elements, but a row has space for "
                f"{self._ragged.text(self._lengths)}. Use a larger length, crop the example in the source, or cut "
                "examples at the ends of rows with split=True."
            )

    def costs(self) -> np.ndarray:
        if self._costs is None:
            self._costs = costs(self._source, self._index)
        return self._costs

    def _first(self) -> RaggedExample:
        """Returns the first readable example: all others have its shapes and dtypes."""
        last = min(len(self._source), SPEC_TRIES) - 1
        for index in range(last):
            with contextlib.suppress(DataError):
                return self._ragged.read(self._source, index)
        return self._ragged.read(self._source, last)

    def fill(self, rows: Sequence[Sequence[Piece]]) -> Examples:
        import jax

        batch = {
            name: zeros((len(rows), length, *self._spec.fields[name].shape[1:]), self._spec.fields[name].dtype)
            for names, length in zip(self._ragged.axes.values(), self._lengths, strict=True)
            for name in names
        }
        ids = [zeros((len(rows), length), np.int32) for length in self._lengths]
        positions = [zeros(array.shape, array.dtype) for array in ids]
        mask = np.zeros((len(rows), self.segments), bool)
        rest = jax.tree.map(lambda leaf: _empty(leaf, mask.shape), self._spec.rest)
        rest_leaves = jax.tree.leaves(rest)
        with stage("collate"):
            for number, pieces in enumerate(rows):
                begins = [0] * len(ids)  # index in each axis of the row at which the next piece begins
                for segment, piece in enumerate(pieces):
                    with stage("read"):
                        example = self._read(piece.example)
                    mask[number, segment] = True
                    values = example.rest
                    leaves = jax.tree.leaves(values) if self._flat is None else [values[name] for name in self._flat]
                    for to, value in zip(rest_leaves, leaves, strict=True):
                        to[number, segment] = value
                    for axis, names in enumerate(self._ragged.axes.values()):
                        start, stop = piece[1:] if self._split else (0, example.lengths[axis])
                        at = slice(begins[axis], begins[axis] + stop - start)
                        for name in names:
                            batch[name][number, at] = example.fields[name][start:stop]
                        ids[axis][number, at] = segment + 1
                        positions[axis][number, at] = self._ascending[: stop - start]
                        begins[axis] = at.stop
        by_axis = self._ragged.by_axis
        masks = by_axis([array > 0 for array in ids])
        return {
            **rest,
            **batch,
            "mask": masks,
            "segment_ids": by_axis(ids),
            "positions": by_axis(positions),
            "segment_mask": mask,
        }

    def _read(self, index: int) -> RaggedExample:
        """Returns an example. Raises DataError if its lengths, shapes or dtypes are not the expected ones."""
        example = self._ragged.read(self._source, index)
        if list(example.lengths) != self._index[:, index].tolist():
            raise DataError(
                f"{self._name(index)} has {self._ragged.text(example.lengths)} elements, but its length index says "
                f"{self._ragged.text(self._index[:, index].tolist())}. Compute the length index again."
            )
        if not self._is_expected(example):
            found, expected = (_shapes(part) for part in (example, self._spec))
            raise DataError(f"{self._name(index)} has {found}, other examples have {expected}. Bring all to one.")
        return example

    def _name(self, index: int) -> str:
        return f"Example {index} of {source_name(self._source)}"

    def _is_expected(self, example: RaggedExample) -> bool:
        """Returns whether an example has the signature of the others, which takes 5 us more than to compare arrays."""
        return self._has_same_arrays(example) or _signature(example) == self._signature

    def _has_same_arrays(self, example: RaggedExample) -> bool:
        flat, rest = self._flat, example.rest
        if flat is None or rest.keys() != flat.keys():
            return False
        for name, (shape, dtype) in flat.items():
            found = rest[name]
            if type(found) is not np.ndarray or found.shape != shape or found.dtype != dtype:
                return False
        for name, first in self._spec.fields.items():
            found = example.fields[name]
            if found.dtype != first.dtype or found.shape[1:] != first.shape[1:]:
                return False
        return True


def _flat_arrays(rest: Mapping[str, PyTree]) -> dict[str, tuple[tuple[int, ...], np.dtype]] | None:
    """Returns the shapes and dtypes of arrays of numbers by name, sorted as by JAX; None if there is anything else."""
    if any(type(x) is not np.ndarray or x.dtype.kind not in NUMERIC_KINDS for x in rest.values()):
        return None
    return {name: (rest[name].shape, rest[name].dtype) for name in sorted(rest)}


def _signature(example: RaggedExample) -> list[object]:
    """Returns what all examples have in common: the structure, and shapes and dtypes without lengths and text."""
    import jax

    leaves, structure = jax.tree.flatten(example.rest)
    arrays = [np.asarray(leaf) for leaf in leaves]
    fields = [(field.shape[1:], field.dtype) for field in example.fields.values()]
    return [structure, *fields, *(None if x.dtype.kind in TEXT else (x.shape, x.dtype) for x in arrays)]


def _shapes(example: RaggedExample) -> str:
    """Returns the shapes and dtypes of an example, without its lengths and the lengths of text."""
    texts = [f"{name} {field.dtype}{['n', *field.shape[1:]]}" for name, field in example.fields.items()]
    for path, leaf in leaves_with_path(example.rest):
        array = np.asarray(leaf)
        texts.append(f"{path} text" if array.dtype.kind in TEXT else f"{path} {array.dtype}{list(array.shape)}")
    return ", ".join(texts).replace("'", "")


def _empty(leaf: PyTree, shape: tuple[int, int]) -> np.ndarray:
    """Returns an array `[rows, segments, ...]` for values like a leaf: zeros, or empty text."""
    array = np.asarray(leaf)
    return np.full(shape, "", object) if array.dtype.kind in TEXT else np.zeros((*shape, *array.shape), array.dtype)


def _most_pieces(lengths: np.ndarray, row_length: int) -> int:
    """Returns a bound on the pieces of a row, whose examples are cut at its ends, for any order of the examples."""
    whole = np.searchsorted(np.cumsum(np.sort(lengths[lengths > 0])), row_length, side="right")
    return min(int(whole) + 2, row_length)


def _length_index(documents: BaseSource, lengths: npt.ArrayLike | None, vocabulary: int | None) -> np.ndarray:
    """Returns `lengths` as int64 `[documents]`; if None, what the documents know, else measured from all of them."""
    if lengths is None:
        lengths = documents.lengths()
    if lengths is None and (found := documents.known_field_lengths(["tokens"])) is not None:
        lengths = found["tokens"]
    if lengths is None:
        lengths = measured(documents, lambda index: len(_tokens(documents, index, vocabulary)))
    if lengths is None or not len(documents) or not np.size(lengths):
        raise DataError(
            f"{source_name(documents)}: no documents. Packing needs at least one; check its files and arguments."
        )
    found = check_index(documents, lengths, "documents")
    if not found.any():
        raise DataError(
            f"{source_name(documents)}: all {len(found)} documents are empty. Packing needs at least one token."
        )
    return found


def _tokens(documents: BaseSource, index: int, vocabulary: int | None) -> np.ndarray:
    """Returns the tokens of a document, integers `[tokens]` in int32 and the vocabulary. Raises DataError otherwise."""
    where = _document_name(documents, index)
    try:
        example = documents[index]
    except Exception as error:
        raise DataError(
            f"{where}: {describe(error)} Read it with documents[{index}]; repair it or leave it out."
        ) from error
    if not isinstance(example, dict) or "tokens" not in example:
        found = ", ".join(map(str, example)) if isinstance(example, dict) else type(example).__name__
        raise DataError(f"{where} has no `tokens`, found {found}. A document is a dict with tokens, integers [tokens].")
    tokens = np.asarray(example["tokens"])
    if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
        raise DataError(
            f"{where}: tokens has shape {list(tokens.shape)} and dtype {tokens.dtype}: allowed are integers [tokens]."
        )
    if tokens.size and not np.can_cast(tokens.dtype, np.int32):
        limits = np.iinfo(np.int32)
        if tokens.max() > limits.max or tokens.min() < limits.min:
            raise DataError(f"{where}: tokens from {tokens.min()} to {tokens.max()} do not fit int32. Renumber them.")
    if vocabulary is not None and len(wrong := np.flatnonzero((tokens < 0) | (tokens >= vocabulary))):
        raise DataError(
            f"{where}: token {wrong[0]} has the id {tokens[wrong[0]]}, but vocabulary = {vocabulary}: allowed are ids "
            f"from 0 to {vocabulary - 1}. Use the tokenizer of the model, or set the vocabulary of the model and of "
            "the data to that of the tokenizer."
        )
    return tokens


def _document_name(documents: BaseSource, index: int) -> str:
    return f"Document {index} of {source_name(documents)}"
