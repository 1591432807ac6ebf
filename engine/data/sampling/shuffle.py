"""Shuffling: a new permutation of the examples in every epoch, and a random generator for every position.

The permutation is computed, never stored, so a billion examples need no memory and any position is found at once.
Grain's index_shuffle is not used: it takes 2 us per index and holds the GIL, which the training loop needs, and for
some sizes it is not a permutation (65,537 examples, Grain 0.2.18: one index comes twice, another never).
"""

import hashlib
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.base.errors import DataError

ROUNDS, ROUNDS_SMALL = 8, 16  # Feistel rounds; small sources need more until all permutations are equally likely
SMALL = 1000  # examples
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: separates the keys of neighbouring epochs
PERMUTATION_STREAM, GENERATOR_STREAM = 0, 1  # random streams of one seed


class EpochPermutation:
    """A permutation of `size` examples for each epoch, chosen by a seed; without `shuffle`, the identity.

    It is a Feistel network (Luby and Rackoff 1988) over a rectangle that is slightly larger than the source. An index
    outside the source is permuted again until it is inside (cycle walking, Black and Rogaway 2002).

    Raises:
        DataError: `size` is below 1.
    """

    def __init__(self, size: int, seed: int, shuffle: bool):
        if size < 1:
            raise DataError(f"A source of {size} examples cannot be shuffled: it needs at least one.")
        self.size, self.shuffle = size, shuffle
        columns = math.isqrt(size - 1) + 1
        self._columns, self._rows = np.uint64(columns), np.uint64(-(-size // columns))
        self._rounds = ROUNDS_SMALL if size <= SMALL else ROUNDS
        self._key = _stream_key(seed, PERMUTATION_STREAM)

    def indices(self, positions: np.ndarray) -> np.ndarray:
        """Returns the indices into the source, int64 `[n]`, for positions of the run, int64 `[n]`."""
        epoch, within = np.divmod(positions, self.size)
        if not self.shuffle:
            return within
        keys = _mix(epoch.astype(np.uint64) + self._key)
        cells = within.astype(np.uint64)
        found = _permute(cells, keys, self._columns, self._rows, self._rounds)
        while len(outside := np.flatnonzero(found >= self.size)):
            found[outside] = _permute(found[outside], keys[outside], self._columns, self._rows, self._rounds)
        return found.astype(np.int64)


class PartPermutations:
    """A permutation for each epoch of each of several parts; without `shuffle`, the identity.

    The parts, such as the examples of each class, have epochs of their own length. The permutation is that of
    `EpochPermutation`, with another key for each part.
    """

    def __init__(self, sizes: np.ndarray, seed: int, shuffle: bool):
        """Creates the permutations of parts of these sizes, int64 `[parts]`; a part of size 0 is never looked up."""
        self._sizes, self.shuffle = np.maximum(sizes, 1).astype(np.int64), shuffle
        columns = np.array([math.isqrt(size - 1) + 1 for size in self._sizes.tolist()])
        self._columns, self._rows = columns.astype(np.uint64), (-(-self._sizes // columns)).astype(np.uint64)
        self._keys = _mix(np.arange(len(sizes), dtype=np.uint64) * GOLDEN + _stream_key(seed, PERMUTATION_STREAM))

    def indices(self, parts: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Returns the indices within their parts, int64 `[n]`, for numbers of parts and positions in these."""
        sizes = self._sizes[parts]
        epoch, within = np.divmod(positions, sizes)
        if not self.shuffle:
            return within
        keys = _mix(epoch.astype(np.uint64) + self._keys[parts])
        columns, rows, found = self._columns[parts], self._rows[parts], within.astype(np.uint64)
        outside = slice(None)
        while len(found[outside]):
            found[outside] = _permute(found[outside], keys[outside], columns[outside], rows[outside], ROUNDS_SMALL)
            outside = np.flatnonzero(found >= sizes.astype(np.uint64))
        return found.astype(np.int64)


def _permute(
    cell: np.ndarray, keys: np.ndarray, columns: np.ndarray | np.uint64, rows: np.ndarray | np.uint64, rounds: int
) -> np.ndarray:
    """Permutes cells uint64 `[n]` of a rectangle; `keys` uint64 `[n]` select the permutation of each cell."""
    row, column = np.divmod(cell, columns)
    for _ in range(rounds // 2):
        keys = keys + GOLDEN
        row = _rotate(row, _mix(column + keys), rows)
        keys = keys + GOLDEN
        column = _rotate(column, _mix(row + keys), columns)
    return row * columns + column


def random_generators(seed: int, positions: np.ndarray) -> list[np.random.Generator]:
    """Returns a random generator for each position int64 `[n]`; it depends on (seed, position) only."""
    keys = _mix(positions.astype(np.uint64) + _stream_key(seed, GENERATOR_STREAM))
    words = _mix(keys[:, None] + np.arange(1, 5, dtype=np.uint64) * GOLDEN)
    seeds: list[Any] = [_Words(row) for row in words]
    return [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]


def derive_seed(seed: int, name: str) -> int:
    """Returns a seed for a named part of a source, so that parts are shuffled independently of each other."""
    words = np.frombuffer(hashlib.blake2b(name.encode(), digest_size=16).digest(), "<u4")
    return int(np.random.SeedSequence([seed, *words.tolist()]).generate_state(1, np.uint64)[0])


class _Words(np.random.bit_generator.ISeedSequence):
    """Seeds a generator with words that are already mixed; numpy's own mixing takes ten times as long."""

    def __init__(self, words: np.ndarray):
        self._words = words

    def generate_state(self, n_words: int, dtype: npt.DTypeLike = np.uint32) -> np.ndarray:
        return self._words


def _stream_key(seed: int, stream: int) -> np.uint64:
    """Returns the key of one random stream of a seed."""
    return np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0]


def _mix(x: np.ndarray) -> np.ndarray:
    """Maps uint64 to uint64 by a bijection that mixes all bits (the finaliser of SplitMix64, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _rotate(values: np.ndarray, bits: np.ndarray, size: np.ndarray | np.uint64) -> np.ndarray:
    """Adds a random offset to values in [0, size), modulo size; a division would take most of the time."""
    values = values + (((bits >> np.uint64(32)) * size) >> np.uint64(32))  # size is below 2**32
    return np.minimum(values, values - size)  # below 0 wraps around to a large number
