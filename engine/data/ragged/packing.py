"""Packs examples of any length into rows of one length.

A *piece* is a range of the elements of one example that lies in one row. The packing plan of an epoch
(`packing_plan.py`) assigns pieces to rows. It depends only on the lengths of the examples, the seed and the epoch, so
checkpoints store no plan. The plans of two consecutive epochs stay in memory, at 24 bytes per piece.
"""

import numpy as np
import numpy.typing as npt

from engine.base.errors import DataError
from engine.base.types import PyTree
from engine.data.ragged.fields import Fields, Lengths, Ragged
from engine.data.ragged.packed_rows import FieldRows, Piece, Rows, TokenRows
from engine.data.ragged.packing_plan import Plan
from engine.data.sampling.sampler import Sampler, Sizes
from engine.data.sampling.shuffle import EpochPermutation, derive_seed
from engine.data.source import SEPARATOR, BaseSource, Example, Examples, Source, inner_sources, source_name
from engine.data.source_adapter import indexed


class Packed(BaseSource):
    """A source of fixed-length rows packed from examples; each element is in exactly one row of an epoch.

    Without `fields`, an example is a document `{"tokens": integers [tokens]}` of any length; other entries are ignored.
    A row is a dict of arrays `[length]`:

    - `tokens`, int32.
    - `targets`, int32: the next token of the same document, even if that token is in another row; 0 if there is none.
    - `segment_ids`, int32: 1, 2 ... for the pieces of the row, and 0 for padding.
    - `positions`, int32: index of the token in its piece, from 0.
    - `weight`, float32: 1 where a target exists, and 0 elsewhere.

    With `fields`, an example is a dict with these ragged fields, arrays `[elements, ...]`, and a row has:

    - the fields, `[length, ...]`, one example after the other, and 0 in padding;
    - `segment_ids` and `positions` as above, and `mask`, bool: True for an element. Each is a dict by axis if the axes
      have names;
    - the other entries of the examples, `[segments, ...]`: entry s belongs to the example of segment id s + 1;
    - `segment_mask`, bool `[segments]`: True for an example.

    Every epoch has the same number of rows, `len`. With `data.shuffle`, each epoch of a training run packs the
    examples in a new order. Rows that are read by index, as by evaluations and `data.limit`, are packed in the stored
    order of the examples. A subclass may define `transform(row, rng)`.
    """

    def __init__(
        self,
        documents: Source,
        length: Lengths,
        *,
        fields: Fields | None = None,
        split: bool | None = None,
        segments: int | None = None,
        lengths: npt.ArrayLike | PyTree = None,
        vocabulary: int | None = None,
    ):
        """Measures the examples and plans the rows.

        Args:
            documents: source of examples. Its method `lengths()`, if it has one, avoids reading all of them here.
            length: elements per row. With named axes: axis -> number.
            fields: names of the ragged fields. If there are fields of different lengths: axis -> names. None for token
                documents.
            split: True concatenates the examples and cuts them at row borders, so only the last row has padding; the
                other entries belong to each piece. False places whole examples, the longest first, each in the fullest
                row with enough space; token documents that are longer than a row are cut. None is True for token
                documents, else False.
            segments: most examples of a row, for `fields`; None takes the number that the plan needs.
            lengths: lengths of the examples, as `documents.lengths()` returns them; replaces that method.
            vocabulary: number of token ids of the model. A document with another id is an error: here, if documents are
                read to measure them, otherwise when it is read.

        Raises:
            DataError: an argument is invalid, `documents` is not a source or has its own sampler or a transform, or the
                lengths or the content of an example are invalid.
        """
        name = source_name(self)
        self.split = fields is None if split is None else split
        if not isinstance(length, dict) and length < 1:  # pyright: ignore[reportOperatorIssue]
            what = "token" if fields is None else "element"
            raise DataError(f"{name}: length = {length}: allowed are 1 {what} and more.")
        documents = indexed(documents, f"{name}: documents")
        self.documents, self.length = documents, length
        _check_packable(documents, name)
        self._contents: Rows
        if fields is None:
            if isinstance(length, dict) or segments is not None:
                raise DataError(f"{name}: token documents have one length and no `segments`. Name the `fields`.")
            self._contents = TokenRows(documents, length, self.split, lengths, vocabulary)  # pyright: ignore[reportArgumentType]
            self._what = "documents"
        else:
            ragged = Ragged(fields, name)
            if vocabulary is not None:
                raise DataError(f"{name}: vocabulary = {vocabulary}: only token documents have one. Remove `fields`.")
            if self.split and (len(ragged.axes) > 1 or segments is not None):
                raise DataError(f"{name}: split = True allows one axis and no `segments`. Use split=False.")
            if segments is not None and segments < 1:
                raise DataError(f"{name}: segments = {segments}: allowed are 1 example and more.")
            limits = ragged.parse(length, f"{name}: length")
            self._contents = rows = FieldRows(
                documents, ragged, limits, segments=segments, split=self.split, index=lengths
            )
            self._what = f"{', '.join(ragged.fields)} of up to {rows.segments} examples"
        self._stored_order = _PackedSampler(self, self._contents, seed=0, shuffle=False)

    @property
    def lengths(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Space that each example needs in a row, int64 `[examples]`: of token documents, their lengths."""
        return self._contents.sizes

    def __len__(self) -> int:
        """Number of rows of an epoch."""
        return self._contents.planner.rows

    def __getitem__(self, index: int) -> Example:
        import jax

        return jax.tree.map(lambda rows: rows[0], self.take(np.array([index])))

    def take(self, indices: np.ndarray) -> Examples:
        """Returns rows `indices` `[batch]` of the unshuffled packing, as arrays `[batch, length, ...]`."""
        return self._stored_order.read(indices)

    def pieces(self, index: int) -> list[Piece]:
        """Returns the pieces of a row of the unshuffled packing, in the order of their segment ids."""
        return self._stored_order.pieces(index)

    @property
    def most_pieces(self) -> int:
        """Largest number of pieces in a row of the unshuffled packing."""
        return self._stored_order.most_pieces

    def fingerprint(self) -> str:
        packed = f"{self._what} {'split' if self.split else 'whole'} in rows of {self.length}"
        return f"{self.documents.fingerprint()}{SEPARATOR}{packed}"

    def sampler(self, seed: int, shuffle: bool) -> "_PackedSampler":
        """Returns the sampler of a training run (`sampler.py`)."""
        return _PackedSampler(self, self._contents, seed, shuffle)


def is_packed(source: BaseSource) -> bool:
    """Returns whether rows of a source hold several examples: `Packed`, also inside of other sources."""
    return isinstance(source, Packed) or any(map(is_packed, inner_sources(source)))


class _PackedSampler(Sampler):
    """Sampler of packed rows. An address is epoch * rows per epoch + row; without shuffle, the epoch is always 0."""

    is_sized = True

    def __init__(self, packed: Packed, contents: Rows, seed: int, shuffle: bool):
        self._packed, self._contents, self._planner = packed, contents, contents.planner
        self.has_transform = packed.has_transform
        self._row_permutation = EpochPermutation(self._planner.rows, seed, shuffle)
        self._item_permutation = EpochPermutation(self._planner.items, derive_seed(seed, "documents"), shuffle)
        # The latest (epoch, plan) of even and of odd epochs: near the end of an epoch, threads already read the next.
        self._plans: list[tuple[int, Plan | None]] = [(-1, None)] * 2

    def addresses(self, positions: np.ndarray) -> np.ndarray:
        rows = self._row_permutation.indices(positions)
        epoch_start = positions - positions % self._row_permutation.size
        return epoch_start + rows if self._row_permutation.shuffle else rows

    def locate(self, address: int) -> tuple[BaseSource, int]:
        return self._packed, address

    def read(self, addresses: np.ndarray) -> Examples:
        return self._contents.fill([self.pieces(address) for address in addresses.tolist()])

    def sizes(self, addresses: np.ndarray) -> Sizes:
        """Returns the sizes of the rows at addresses."""
        elements, costs = self._contents.elements, self._contents.costs()
        found = []
        for address in addresses.tolist():
            index, start, stop = np.array(self.pieces(address)).T
            parts = (stop - start) / np.maximum(self._contents.sizes[index], 1)  # the share of each example
            found.append(((elements[index] * parts).sum(), (costs[index] * parts).sum()))
        real, cost = np.array(found, np.float64).reshape(-1, 2).T
        return Sizes(real, np.full(len(addresses), self._contents.space), cost)

    @property
    def most_pieces(self) -> int:
        """Largest number of pieces in a row of the first epoch."""
        return int(np.diff(self._plan(0).first).max())

    def pieces(self, address: int) -> list[Piece]:
        """Returns the pieces of a row."""
        epoch, row = divmod(address, self._row_permutation.size)
        plan = self._plan(epoch)
        at = slice(plan.first[row], plan.first[row + 1])
        parts = (part[at].tolist() for part in (plan.document, plan.start, plan.stop))
        return [Piece(*piece) for piece in zip(*parts, strict=True)]

    def _plan(self, epoch: int) -> Plan:
        cached_epoch, plan = self._plans[epoch % 2]
        if cached_epoch != epoch or plan is None:
            items = self._item_permutation.size
            plan = self._planner.plan(self._item_permutation.indices(epoch * items + np.arange(items)))
            self._plans[epoch % 2] = (epoch, plan)
        return plan


def _check_packable(documents: BaseSource, name: str) -> None:
    """Raises DataError if the documents have a sampler or a transform: the plan relies on fixed lengths."""
    if documents.is_weighted:
        raise DataError(
            f"{name}: {source_name(documents)} draws some documents more often than others, but a plan has each once. "
            "Pack the documents of each tag first, then mix: Mixture({TAG: Packed(...), ...}, weights)."
        )
    if documents.defines("sampler"):
        raise DataError(
            f"{name}: {source_name(documents)} has its own sampler, whose epochs may differ in their number of tokens. "
            "Pack the documents of each source first, then mix: Mixture({NAME: Packed(...), ...}, weights)."
        )
    if documents.has_transform:
        raise DataError(
            f"{name}: {source_name(documents)} has a transform, which may change the lengths that the plan relies on. "
            "Define it as transform(row, rng) in a subclass of Packed."
        )
