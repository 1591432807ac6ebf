"""The order in which examples are read: endless, a new permutation in every epoch.

Owns: the map from a place in the run to an index into the source, and the random numbers that belong to a place.

Terms. *Global example index*: place of an example in the run's endless order, 0, 1, 2 ...; epoch e is the places
e * size to (e + 1) * size - 1.

The permutation is computed and never stored, so a billion examples cost no memory and any place is reached at once.
It is a Feistel network (Luby and Rackoff 1988) over the cells of a rectangle that is hardly larger than the source; a
place that falls outside is sent through it again, until it lands on an example (cycle walking, Black and Rogaway 2002).
It is our own for two reasons. Grain's index_shuffle takes 2 us for each index and holds Python's lock, which the loop
that feeds the device needs; this one works on whole arrays. And that function is no permutation for some sizes (65,537
examples with Grain 0.2.18: one is read twice and another never).
"""

import hashlib
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.config.errors import DataError

ROUNDS, ROUNDS_SMALL = 8, 16  # of the network; small sources need more until all their orders are equally likely
SMALL = 1000  # examples
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: keeps keys of neighbouring epochs apart
ORDER, DRAWS = 0, 1  # streams of one seed


class Order:
    """The order of `size` examples for a seed; without `shuffle`, as they lie in the source."""

    def __init__(self, size: int, seed: int, shuffle: bool):
        if size < 1:
            raise DataError(f"The order of {size} examples: a source needs at least one.")
        self.size, self.shuffle = size, shuffle
        columns = math.isqrt(size - 1) + 1
        self._columns, self._rows = np.uint64(columns), np.uint64(-(-size // columns))
        self._rounds = ROUNDS_SMALL if size <= SMALL else ROUNDS
        self._key = _stream(seed, ORDER)

    def indices(self, global_ids: np.ndarray) -> np.ndarray:
        """Returns the source's indices int64 `[n]` for global example indices int64 `[n]`."""
        epoch, place = np.divmod(global_ids, self.size)
        if not self.shuffle:
            return place
        keys = _mix(epoch.astype(np.uint64) + self._key)
        found = self._permute(place.astype(np.uint64), keys)
        while len(outside := np.flatnonzero(found >= self.size)):
            found[outside] = self._permute(found[outside], keys[outside])
        return found.astype(np.int64)

    def _permute(self, cell: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Permutes the cells of the rectangle; `keys` `[n]` select the permutation for each."""
        row, column = np.divmod(cell, self._columns)
        for _ in range(self._rounds // 2):
            keys = keys + GOLDEN
            row = _turn(row, _mix(column + keys), self._rows)
            keys = keys + GOLDEN
            column = _turn(column, _mix(row + keys), self._columns)
        return row * self._columns + column


def draws(seed: int, global_ids: np.ndarray) -> list[np.random.Generator]:
    """Returns a random generator for each global example index; it depends on the seed and that index only."""
    keys = _mix(global_ids.astype(np.uint64) + _stream(seed, DRAWS))
    words = _mix(keys[:, None] + np.arange(1, 5, dtype=np.uint64) * GOLDEN)
    seeds: list[Any] = [_Words(row) for row in words]
    return [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]


def derived(seed: int, name: str) -> int:
    """Returns a seed for one part of a source, by its name; parts and sources have orders of their own then."""
    words = np.frombuffer(hashlib.blake2b(name.encode(), digest_size=16).digest(), "<u4")
    return int(np.random.SeedSequence([seed, *words.tolist()]).generate_state(1, np.uint64)[0])


class _Words(np.random.bit_generator.ISeedSequence):
    """Seeds a generator with words that are mixed already: numpy's own mixing takes ten times as long."""

    def __init__(self, words: np.ndarray):
        self._words = words

    def generate_state(self, n_words: int, dtype: npt.DTypeLike = np.uint32) -> np.ndarray:
        return self._words


def _stream(seed: int, stream: int) -> np.uint64:
    """The key of one use of a seed."""
    return np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0]


def _mix(x: np.ndarray) -> np.ndarray:
    """Scrambles 64 bits one to one (the finaliser of SplitMix64, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _turn(values: np.ndarray, bits: np.ndarray, size: np.uint64) -> np.ndarray:
    """Moves values in [0, size) around their circle by random 64 bits each; a division would take most of the time."""
    values = values + (((bits >> np.uint64(32)) * size) >> np.uint64(32))  # size is below 2**32
    return np.minimum(values, values - size)  # below 0 wraps around to a large number
