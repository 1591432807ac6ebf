"""Packs documents of any length into rows of one length.

The packing plan of an epoch (`packing_plan.py`) depends on the lengths of the documents, the seed and the epoch alone.
A row is therefore addressed by its position in the run, and a checkpoint stores nothing. The two latest plans stay in
memory, at 24 bytes per piece of a document.
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
    - `targets`, int32: the next token of the same document, which may be in the next row.
    - `segment_ids`, int32: 1, 2 ... for the documents of the row, and 0 for padding.
    - `positions`, int32: token positions from the start of the piece.
    - `weight`, float32: 1 where a target exists, and 0 elsewhere.

    An epoch always has `len` rows. In training, each epoch packs the documents in a new order. By index, as evaluations
    and `data.limit` read, the documents are packed in their stored order. A subclass may define `transform(row, rng)`.
    """

    def __init__(self, documents: Source, length: int, *, split: bool = True, lengths: npt.ArrayLike | None = None):
        """Measures the documents and plans the rows.

        Args:
            documents: source of documents. If it has a method `lengths()`, the documents are not read to measure them.
            length: tokens per row.
            split: True concatenates the documents and cuts them at row borders, so only the last row has padding. False
                keeps each document whole, in the fullest row with enough space, longest documents first; only documents
                longer than a row are cut.
            lengths: lengths of the documents, integers `[documents]`; used instead of `documents.lengths()`.

        Raises:
            DataError: `documents` is not a source, has its own sampler or a transform, or holds something that cannot
                be packed.
        """
        self.documents, self.length, self.split = documents, length, split
        if length < 1:
            raise DataError(f"{source_name(self)}: length = {length}: allowed are 1 token and more.")
        check_source(documents, f"{source_name(self)}: documents")
        _check_order(documents, source_name(self))
        self.lengths = _length_index(documents, lengths)
        self._planner = (SplitPlanner if split else WholePlanner)(self.lengths, length)
        self._in_order = _Sampler(self, self._planner, seed=0, shuffle=False)

    def __len__(self) -> int:
        """Number of rows of an epoch."""
        return self._planner.rows

    def __getitem__(self, index: int) -> Example:
        return {name: rows[0] for name, rows in self.take(np.array([index])).items()}

    def take(self, indices: np.ndarray) -> Examples:
        """Returns rows `indices` `[batch]` of the unshuffled packing, as arrays `[batch, length]`."""
        return self._in_order.read(indices)

    def fingerprint(self) -> str:
        packed = f"documents {'split' if self.split else 'whole'} in rows of {self.length}"
        return f"{fingerprint(self.documents)}{SEPARATOR}{packed}"

    def sampler(self, seed: int, shuffle: bool) -> "_Sampler":
        """Returns the sampler of a training run (`sampler.py`)."""
        return _Sampler(self, self._planner, seed, shuffle)


class _Sampler:
    """Sampler of packed rows; an address is epoch * rows + row. Without shuffle every epoch equals the first."""

    vectorized = False  # each row is assembled separately

    def __init__(self, packed: Packed, planner: SplitPlanner | WholePlanner, seed: int, shuffle: bool):
        self._packed, self._planner = packed, planner
        self.has_transform = has_transform(packed)
        self._rows = EpochPermutation(planner.rows, seed, shuffle)
        self._items = EpochPermutation(planner.items, derive_seed(seed, "documents"), shuffle)
        # Two cached plans, since threads may work on both sides of the border between two epochs.
        self._plans: list[tuple[int, Plan | None]] = [(-1, None)] * 2

    def addresses(self, positions: np.ndarray) -> np.ndarray:
        rows = self._rows.indices(positions)
        return positions - positions % self._rows.size + rows if self._rows.shuffle else rows

    def locate(self, address: int) -> tuple[Source, int]:
        return self._packed, address

    def read(self, addresses: np.ndarray) -> Examples:
        shape = (len(addresses), self._packed.length)
        batch = {name: np.zeros(shape, dtype) for name, dtype in ARRAYS.items()}
        for row, address in enumerate(addresses.tolist()):
            epoch, number = divmod(address, self._rows.size)
            self._fill({name: rows[row] for name, rows in batch.items()}, self._plan(epoch), number)
        return batch

    def _plan(self, epoch: int) -> Plan:
        known, plan = self._plans[epoch % 2]
        if known != epoch or plan is None:
            plan = self._planner.plan(self._items.indices(epoch * self._items.size + np.arange(self._items.size)))
            self._plans[epoch % 2] = (epoch, plan)
        return plan

    def _fill(self, row: Example, plan: Plan, number: int) -> None:
        """Writes the pieces of row `number` into the arrays `[length]` of `row`, which hold zeros."""
        at = 0
        for segment, piece in enumerate(range(plan.first[number], plan.first[number + 1]), 1):
            index, start, stop = (int(part[piece]) for part in (plan.document, plan.start, plan.stop))
            tokens = _tokens(self._packed.documents, index)
            if len(tokens) != self._packed.lengths[index]:
                raise DataError(
                    f"{_document_name(self._packed.documents, index)} has {len(tokens)} tokens, but its length index "
                    f"says {self._packed.lengths[index]}. Compute the length index again."
                )
            end, known = at + stop - start, at + min(stop, len(tokens) - 1) - start
            row["tokens"][at:end] = tokens[start:stop]
            row["targets"][at:known] = tokens[start + 1 : stop + 1]
            row["segment_ids"][at:end] = segment
            row["positions"][at:end] = np.arange(stop - start)
            row["weight"][at:known] = 1
            at = end


def _check_order(documents: Source, name: str) -> None:
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
    """Returns lengths int64 `[documents]`: the argument, else `documents.lengths()`, else measured by reading all."""
    if lengths is None:
        own = getattr(documents, "lengths", None)
        lengths = own() if own is not None else [len(_tokens(documents, index)) for index in range(len(documents))]
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
    """Returns the tokens `[tokens]` of a document, integers that fit int32."""
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
