"""Packing: documents of any length in rows of one length.

Owns: the rows and their order in a run. Does not own: which piece of a document lies in which row (`packing_plan.py`)
and the permutations (`shuffle.py`).

The plan of an epoch is computed from the lengths of the documents, the seed and the epoch alone. So a row is addressed
by its place in the run as any example is, and there is nothing to save. The last two plans stay in memory, 24 bytes a
piece.
"""

import numpy as np
import numpy.typing as npt

from engine.config.errors import DataError
from engine.data.packing_plan import Plan, SplitPlanner, WholePlanner
from engine.data.shuffle import Order, derived
from engine.data.source import PART, Example, Examples, Source, check_source, fingerprint, has_transform, name_of

ARRAYS = {
    "tokens": np.int32,
    "targets": np.int32,
    "segment_ids": np.int32,
    "positions": np.int32,
    "weight": np.float32,
}


class Packed:
    """Rows of documents, each token in exactly one of them; segment ids keep the documents of a row apart.

    A document is an example `{"tokens": integers [tokens]}` of any length; other entries are not read. A row is a dict
    of arrays `[length]`: `tokens` int32; `targets` int32, the next tokens; `segment_ids` int32, 1, 2 ... for the pieces
    of the row and 0 for padding; `positions` int32, from the start of the piece; and `weight` float32, 1 where the
    target is the next token of the same document, be it in the next row, and 0 elsewhere.

    An epoch always has `len` rows. Training packs anew in each epoch; by index, as evaluations and `data.limit` read,
    the documents are packed in their order. A subclass may have `transform(row, rng)`.
    """

    def __init__(self, documents: Source, length: int, *, split: bool = True, lengths: npt.ArrayLike | None = None):
        """Measures the documents.

        Args:
            documents: random access to documents. Their method `lengths()` saves reading them all, if there is one.
            length: tokens of a row.
            split: True lays the documents end to end and cuts them at the borders of rows: only the last row has
                padding. False keeps a document whole, in the fullest row that has room, longest first, and cuts only
                what is longer than a row.
            lengths: of the documents, integers `[documents]`, in place of those that they state themselves.

        Raises:
            DataError: something that cannot be packed, by name.
        """
        self.documents, self.length, self.split = documents, length, split
        if length < 1:
            raise DataError(f"{name_of(self)}: length = {length}, allowed are 1 token and more.")
        check_source(documents, f"{name_of(self)}: documents")
        _check_order(documents, name_of(self))
        self.lengths = _length_index(documents, lengths)
        self._planner = (SplitPlanner if split else WholePlanner)(self.lengths, length)
        self._in_order = _Sampler(self, self._planner, seed=0, shuffle=False)

    def __len__(self) -> int:
        """Rows of an epoch."""
        return self._planner.rows

    def __getitem__(self, index: int) -> Example:
        return {name: rows[0] for name, rows in self.take(np.array([index])).items()}

    def take(self, indices: np.ndarray) -> Examples:
        """Returns rows `indices` `[batch]` of the packing in order, as arrays `[batch, length]`."""
        return self._in_order.read(indices)

    def fingerprint(self) -> str:
        packed = f"documents {'split' if self.split else 'whole'} in rows of {self.length}"
        return f"{fingerprint(self.documents)}{PART}{packed}"

    def arranged(self, seed: int, shuffle: bool) -> "_Sampler":
        """Returns the rows in the order of a run (`sampler.py`)."""
        return _Sampler(self, self._planner, seed, shuffle)


class _Sampler:
    """The rows of a run; an address is epoch * rows + row. Without shuffle every epoch is the first."""

    gathers = False  # each row is put together by itself

    def __init__(self, packed: Packed, planner: SplitPlanner | WholePlanner, seed: int, shuffle: bool):
        self._packed, self._planner = packed, planner
        self.changes = has_transform(packed)
        self._rows = Order(planner.rows, seed, shuffle)
        self._items = Order(planner.items, derived(seed, "documents"), shuffle)
        self._plans: list[tuple[int, Plan | None]] = [(-1, None)] * 2  # two, as threads overlap at a border

    def addresses(self, places: np.ndarray) -> np.ndarray:
        rows = self._rows.indices(places)
        return places - places % self._rows.size + rows if self._rows.shuffle else rows

    def owner(self, address: int) -> tuple[Source, int]:
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
        """Writes the pieces of row `number` into arrays of zeros `[length]`."""
        at = 0
        for segment, piece in enumerate(range(plan.first[number], plan.first[number + 1]), 1):
            index, start, stop = (int(part[piece]) for part in (plan.document, plan.start, plan.stop))
            tokens = _tokens(self._packed.documents, index)
            if len(tokens) != self._packed.lengths[index]:
                raise DataError(
                    f"{_called(self._packed.documents, index)} has {len(tokens)} tokens, its length index says "
                    f"{self._packed.lengths[index]}. Make the index again."
                )
            end, known = at + stop - start, at + min(stop, len(tokens) - 1) - start
            row["tokens"][at:end] = tokens[start:stop]
            row["targets"][at:known] = tokens[start + 1 : stop + 1]
            row["segment_ids"][at:end] = segment
            row["positions"][at:end] = np.arange(stop - start)
            row["weight"][at:known] = 1
            at = end


def _check_order(documents: Source, name: str) -> None:
    if hasattr(documents, "arranged"):
        raise DataError(
            f"{name}: {name_of(documents)} has an order of its own, in which epochs differ in their number of tokens. "
            "Pack the documents of each source, and mix the packed ones: Mixture({NAME: Packed(...), ...}, weights)."
        )
    if has_transform(documents):
        raise DataError(
            f"{name}: {name_of(documents)} has a transform, which may change lengths that the plan relies on. "
            "Write it as transform(row, rng) of a subclass of Packed."
        )


def _length_index(documents: Source, lengths: npt.ArrayLike | None) -> np.ndarray:
    """Returns the lengths int64 `[documents]`: those given, those that the documents state, or the measured ones."""
    if lengths is None:
        own = getattr(documents, "lengths", None)
        lengths = own() if own is not None else [len(_tokens(documents, index)) for index in range(len(documents))]
    found, name = np.asarray(lengths), name_of(documents)
    if not found.size or not len(documents):
        raise DataError(f"{name}: no documents. Packing needs at least one; check its files and arguments.")
    if found.shape != (len(documents),) or found.dtype.kind not in "iu" or found.min() < 0:
        raise DataError(
            f"{name}: a length index of shape {list(found.shape)} and dtype {found.dtype}, lowest {found.min()}. "
            f"Allowed are integers from 0 on, one for each of the {len(documents)} documents."
        )
    if not found.any():
        raise DataError(f"{name}: {len(found)} documents without a token. Packing needs at least one token.")
    return found.astype(np.int64)


def _tokens(documents: Source, index: int) -> np.ndarray:
    """Returns the tokens `[tokens]` of a document, integers that fit int32."""
    where = _called(documents, index)
    try:
        example = documents[index]
    except Exception as error:
        raise DataError(
            f"{where}: {type(error).__name__}: {error}. Read it alone with documents[{index}]; mend it or leave it out."
        ) from error
    if not isinstance(example, dict) or "tokens" not in example:
        found = ", ".join(map(str, example)) if isinstance(example, dict) else type(example).__name__
        raise DataError(f"{where} has no `tokens`, found {found}. A document is a dict with tokens, integers [tokens].")
    tokens = np.asarray(example["tokens"])
    if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
        raise DataError(
            f"{where}: tokens has shape {list(tokens.shape)} and dtype {tokens.dtype}, allowed are integers [tokens]."
        )
    if tokens.size and not np.can_cast(tokens.dtype, np.int32):
        limits = np.iinfo(np.int32)
        if tokens.max() > limits.max or tokens.min() < limits.min:
            raise DataError(
                f"{where}: tokens from {tokens.min()} to {tokens.max()} do not fit int32. Number them anew."
            )
    return tokens


def _called(documents: Source, index: int) -> str:
    return f"Document {index} of {name_of(documents)}"
