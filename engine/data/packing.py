"""Packs documents of any length into rows of one length.

A *piece* is a range of tokens of one document that lies in one row. The packing plan of an epoch (`packing_plan.py`)
assigns pieces to rows. It depends only on the lengths of the documents, the seed and the epoch, so checkpoints store no
plan. The plans of two consecutive epochs stay in memory, at 24 bytes per piece.
"""

import numpy as np
import numpy.typing as npt

from engine.config.errors import DataError
from engine.data.packing_plan import Plan, SplitPlanner, WholePlanner
from engine.data.shuffle import EpochPermutation, derive_seed
from engine.data.source import (
    SEPARATOR,
    Example,
    Examples,
    Source,
    check_source,
    fingerprint,
    has_transform,
    source_name,
)

ARRAYS = {
    "tokens": np.int32,
    "targets": np.int32,
    "segment_ids": np.int32,
    "positions": np.int32,
    "weight": np.float32,
}


class Packed:
    """A source of fixed-length rows packed from documents; each token is in exactly one row of an epoch.

    A document is an example `{"tokens": integers [tokens]}` of any length; other entries are ignored. A row is a dict
    of arrays `[length]`:

    - `tokens`, int32.
    - `targets`, int32: the next token of the same document, even if that token is in another row; 0 if there is none.
    - `segment_ids`, int32: 1, 2 ... for the pieces of the row, and 0 for padding.
    - `positions`, int32: index of the token in its piece, from 0.
    - `weight`, float32: 1 where a target exists, and 0 elsewhere.

    Every epoch has the same number of rows, `len`. With `data.shuffle`, each epoch of a training run packs the
    documents in a new order. Rows that are read by index, as by evaluations and `data.limit`, are packed in the stored
    order of the documents. A subclass may define `transform(row, rng)`.
    """

    def __init__(self, documents: Source, length: int, *, split: bool = True, lengths: npt.ArrayLike | None = None):
        """Measures the documents and plans the rows.

        Args:
            documents: source of documents. Its method `lengths()`, if it has one, avoids reading all documents here.
            length: tokens per row.
            split: True concatenates the documents and cuts them at row borders, so only the last row has padding. False
                places whole documents, the longest first, each in the fullest row with enough space. It cuts only
                documents that are longer than a row.
            lengths: lengths of the documents, integers `[documents]`; replaces `documents.lengths()`.

        Raises:
            DataError: `length` is below 1, `documents` is not a source or has its own sampler or a transform, or the
                lengths or the tokens of a document are invalid.
        """
        self.documents, self.length, self.split = documents, length, split
        if length < 1:
            raise DataError(f"{source_name(self)}: length = {length}: allowed are 1 token and more.")
        check_source(documents, f"{source_name(self)}: documents")
        _check_packable(documents, source_name(self))
        self.lengths = _length_index(documents, lengths)
        self._planner = (SplitPlanner if split else WholePlanner)(self.lengths, length)
        self._stored_order = _Sampler(self, self._planner, seed=0, shuffle=False)

    def __len__(self) -> int:
        """Number of rows of an epoch."""
        return self._planner.rows

    def __getitem__(self, index: int) -> Example:
        return {name: rows[0] for name, rows in self.take(np.array([index])).items()}

    def take(self, indices: np.ndarray) -> Examples:
        """Returns rows `indices` `[batch]` of the unshuffled packing, as arrays `[batch, length]`."""
        return self._stored_order.read(indices)

    def fingerprint(self) -> str:
        packed = f"documents {'split' if self.split else 'whole'} in rows of {self.length}"
        return f"{fingerprint(self.documents)}{SEPARATOR}{packed}"

    def sampler(self, seed: int, shuffle: bool) -> "_Sampler":
        """Returns the sampler of a training run (`sampler.py`)."""
        return _Sampler(self, self._planner, seed, shuffle)


class _Sampler:
    """Sampler of packed rows. An address is epoch * rows per epoch + row; without shuffle, the epoch is always 0."""

    vectorized = False  # a call for many rows takes as long as one call for each row

    def __init__(self, packed: Packed, planner: SplitPlanner | WholePlanner, seed: int, shuffle: bool):
        self._packed, self._planner = packed, planner
        self.has_transform = has_transform(packed)
        self._row_permutation = EpochPermutation(planner.rows, seed, shuffle)
        self._item_permutation = EpochPermutation(planner.items, derive_seed(seed, "documents"), shuffle)
        # The latest (epoch, plan) of even and of odd epochs: near the end of an epoch, threads already read the next.
        self._plans: list[tuple[int, Plan | None]] = [(-1, None)] * 2

    def addresses(self, positions: np.ndarray) -> np.ndarray:
        rows = self._row_permutation.indices(positions)
        epoch_start = positions - positions % self._row_permutation.size
        return epoch_start + rows if self._row_permutation.shuffle else rows

    def locate(self, address: int) -> tuple[Source, int]:
        return self._packed, address

    def read(self, addresses: np.ndarray) -> Examples:
        shape = (len(addresses), self._packed.length)
        batch = {name: np.zeros(shape, dtype) for name, dtype in ARRAYS.items()}
        for row, address in enumerate(addresses.tolist()):
            epoch, planned_row = divmod(address, self._row_permutation.size)
            self._fill({name: rows[row] for name, rows in batch.items()}, self._plan(epoch), planned_row)
        return batch

    def _plan(self, epoch: int) -> Plan:
        cached_epoch, plan = self._plans[epoch % 2]
        if cached_epoch != epoch or plan is None:
            items = self._item_permutation.size
            plan = self._planner.plan(self._item_permutation.indices(epoch * items + np.arange(items)))
            self._plans[epoch % 2] = (epoch, plan)
        return plan

    def _fill(self, row: Example, plan: Plan, planned_row: int) -> None:
        """Writes the pieces of row `planned_row` of the plan into `row`: arrays `[length]` that are initially zero."""
        begin = 0  # index in the row at which the next piece begins
        for segment, piece in enumerate(range(plan.first[planned_row], plan.first[planned_row + 1]), 1):
            index, start, stop = (int(part[piece]) for part in (plan.document, plan.start, plan.stop))
            tokens = _tokens(self._packed.documents, index)
            if len(tokens) != self._packed.lengths[index]:
                raise DataError(
                    f"{_document_name(self._packed.documents, index)} has {len(tokens)} tokens, but its length index "
                    f"says {self._packed.lengths[index]}. Compute the length index again."
                )
            end = begin + stop - start
            targets_end = begin + min(stop, len(tokens) - 1) - start  # the last token of a document has no target
            row["tokens"][begin:end] = tokens[start:stop]
            row["targets"][begin:targets_end] = tokens[start + 1 : stop + 1]
            row["segment_ids"][begin:end] = segment
            row["positions"][begin:end] = np.arange(stop - start)
            row["weight"][begin:targets_end] = 1
            begin = end


def _check_packable(documents: Source, name: str) -> None:
    """Raises DataError if the documents have a sampler or a transform: the plan relies on fixed lengths."""
    if hasattr(documents, "sampler"):
        raise DataError(
            f"{name}: {source_name(documents)} has its own sampler, whose epochs may differ in their number of tokens. "
            "Pack the documents of each source first, then mix: Mixture({NAME: Packed(...), ...}, weights)."
        )
    if has_transform(documents):
        raise DataError(
            f"{name}: {source_name(documents)} has a transform, which may change the lengths that the plan relies on. "
            "Define it as transform(row, rng) in a subclass of Packed."
        )


def _length_index(documents: Source, lengths: npt.ArrayLike | None) -> np.ndarray:
    """Returns `lengths` as int64 `[documents]`; if None, `documents.lengths()`, else measured from all documents."""
    if lengths is None:
        lengths_method = getattr(documents, "lengths", None)
        lengths = (
            lengths_method()
            if lengths_method is not None
            else [len(_tokens(documents, index)) for index in range(len(documents))]
        )
    found, name = np.asarray(lengths), source_name(documents)
    if not found.size or not len(documents):
        raise DataError(f"{name}: no documents. Packing needs at least one; check its files and arguments.")
    if found.shape != (len(documents),) or found.dtype.kind not in "iu" or found.min() < 0:
        raise DataError(
            f"{name}: the length index has shape {list(found.shape)}, dtype {found.dtype} and minimum {found.min()}. "
            f"Allowed are integers of at least 0, one for each of the {len(documents)} documents."
        )
    if not found.any():
        raise DataError(f"{name}: all {len(found)} documents are empty. Packing needs at least one token.")
    return found.astype(np.int64)


def _tokens(documents: Source, index: int) -> np.ndarray:
    """Returns the tokens of a document, integers `[tokens]` that fit int32. Raises DataError if they do not."""
    where = _document_name(documents, index)
    try:
        example = documents[index]
    except Exception as error:
        raise DataError(
            f"{where}: {type(error).__name__}: {error}. Read it with documents[{index}]; repair it or leave it out."
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
    return tokens


def _document_name(documents: Source, index: int) -> str:
    return f"Document {index} of {source_name(documents)}"
