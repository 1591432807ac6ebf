"""Says which examples of a dataset a row of predictions holds: by key, and for packed rows by segment.

Only for the stored order, in which predictions are read.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from engine.base.types import PyTree
from engine.data.ragged.balanced import Balanced
from engine.data.ragged.packing import Packed
from engine.data.ragged.padded import Padded
from engine.data.sampling.mixture import Mixture
from engine.data.sampling.weighted import Weighted
from engine.data.source import BaseSource, Limited, inner_sources
from engine.data.source_adapter import indexed

KEY = "example/key"  # column with the key of the example
SEGMENT_EXAMPLE, SEGMENT_START, SEGMENT_KEY = "segment/example", "segment/start", "segment/key"  # of packed rows
RAGGED_FIELDS = ("mask", "segment_ids", "segment_mask")  # entries of a batch that say which elements are real
PADDING = -1  # in place of the index of an example

_SAME_ROWS = (Limited, Balanced, Padded, Weighted)  # their examples have the indices of their source


class Origins:
    """The examples of the rows of a source.

    Args:
        source: source of the predictions.
    """

    def __init__(self, source: BaseSource):
        self._source = source
        packed = [found for found in _all_sources(source) if isinstance(found, Packed)]
        self._segments = max((found.most_pieces for found in packed), default=0)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return (KEY, SEGMENT_EXAMPLE, SEGMENT_START, SEGMENT_KEY) if self._segments else (KEY,)

    def numbers(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the columns of numbers, for rows int64 `[rows]`: none if no row is packed.

        `segment/example` is the index of each example of a row in the source that is packed, and `segment/start` the
        index of its first element, int64 `[rows, segments]`. They are -1 after the last segment.
        """
        if not self._segments:
            return {}
        found = {name: np.full((len(rows), self._segments), PADDING) for name in (SEGMENT_EXAMPLE, SEGMENT_START)}
        for number, row in enumerate(rows.tolist()):
            for segment, (_, example, start) in enumerate(self._pieces(row)):
                found[SEGMENT_EXAMPLE][number, segment] = example
                found[SEGMENT_START][number, segment] = start
        return found

    def keys(self, rows: Iterable[int]) -> dict[str, list[Any]]:
        """Returns the columns of text: the key of each row, and an array of those of its segments.

        A key is the index of the example in its own source, after the name of this source in a mixture, such as
        "highway/12".
        """
        found = {name: [] for name in self.names if name in (KEY, SEGMENT_KEY)}
        for row in rows:
            parts, _, index = _locate(self._source, row)
            found[KEY].append(_key(parts, index))
            if self._segments:
                keys = [_key(parts, example) for parts, example, _ in self._pieces(row)]
                found[SEGMENT_KEY].append(np.array(keys, None if keys else str))
        return found

    def _pieces(self, row: int) -> Iterator[tuple[list[str], int, int]]:
        """Yields the names of the sources, the index and the first element of each example in a packed row."""
        names, source, index = _locate(self._source, row)
        if isinstance(source, Packed):
            for piece in source.pieces(index):
                yield names, piece.example, piece.start


def ragged_fields(source: BaseSource, example: PyTree) -> tuple[str, ...]:
    """Returns the entries of an example of a ragged source that say which elements are real."""
    found = list(_all_sources(source))
    if not isinstance(example, Mapping) or not any(isinstance(inner, Padded | Packed) for inner in found):
        return ()
    names = RAGGED_FIELDS if any(isinstance(inner, Packed) for inner in found) else RAGGED_FIELDS[:1]
    return tuple(name for name in names if name in example)


def _locate(source: BaseSource, index: int) -> tuple[list[str], BaseSource, int]:
    """Returns the names of the parts of mixtures, the innermost source with rows of its own, and the index there."""
    names: list[str] = []
    while True:
        if isinstance(source, Mixture):
            name, index = source.locate(index)
            names.append(name)
            source = indexed(source.sources[name], name)
        elif isinstance(source, _SAME_ROWS) and isinstance(source.source, BaseSource):
            source = source.source
        else:
            return names, source, index


def _key(names: list[str], index: int) -> str:
    return "/".join([*names, str(index)])


def _all_sources(source: BaseSource) -> Iterator[BaseSource]:
    yield source
    for inner in inner_sources(source):
        yield from _all_sources(inner)
