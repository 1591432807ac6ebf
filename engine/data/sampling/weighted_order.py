"""Orders of a source whose examples are drawn by weights: by tag, by example, and by weights that change during a run.

Each maps positions of a run to indices of examples (`sampler.Order`), as a pure function of the seed.
"""

import math
from collections.abc import Sequence

import numpy as np

from engine.data.sampling.share_schedule import ShareSchedule
from engine.data.sampling.shuffle import EpochPermutation, PartPermutations, derive_seed

LINE = 62  # bits of the length of the line on which a systematic sample is taken


class TagOrder:
    """Order of a source whose tags have shares: 4 bytes for each example.

    Args:
        numbers: tag of each example, `[examples]`.
        shares: shares of the tags by position.
    """

    def __init__(
        self, numbers: np.ndarray, shares: list[tuple[int, np.ndarray]], interpolate: bool, seed: int, shuffle: bool
    ):
        self.shuffle = shuffle
        self._schedule = ShareSchedule(shares, interpolate, len(numbers), derive_seed(seed, "tags"))
        sizes = np.bincount(numbers, minlength=len(shares[0][1]))
        self._members = np.argsort(numbers, kind="stable").astype(np.int32 if len(numbers) < 2**31 else np.int64)
        self._begins = np.cumsum(sizes) - sizes  # [tags]
        self._within = PartPermutations(sizes, derive_seed(seed, "examples of tags"), shuffle)

    def indices(self, positions: np.ndarray) -> np.ndarray:
        tags, ranks = self._schedule.locate(positions)
        return self._members[self._begins[tags] + self._within.indices(tags, ranks)].astype(np.int64)


class ExampleOrder:
    """Order of a source whose examples have weights `[examples]`: 12 bytes for each example.

    Each example has a part of a line, in proportion to its weight, in an order that stays for the run. An epoch of N
    draws takes the examples at N equally spaced points, in random order. The first point of each epoch is the previous
    one plus the golden ratio of the spacing, which spreads the points of all epochs evenly.
    """

    def __init__(self, weights: np.ndarray, seed: int, shuffle: bool):
        count, self.shuffle = len(weights), shuffle
        self._slots = EpochPermutation(count, seed, shuffle)
        order = EpochPermutation(count, derive_seed(seed, "line"), shuffle).indices(np.arange(count))
        self._order = order.astype(np.int32 if count < 2**31 else np.int64)
        # A power of two, so that integers and halves keep their exact proportions. The factor above 1 keeps sums that
        # are powers of two, such as of equal weights, away from the rounding of np.sum, which differs between CPUs.
        _, exponent = math.frexp(float(weights.sum()) * (1 + 1e-9))
        parts = np.rint(np.ldexp(weights, LINE - exponent)).astype(np.int64)
        self._ends = np.cumsum(parts[self._order])  # [examples]
        self._step = int(self._ends[-1]) // count
        self._first = derive_seed(seed, "first point") % self._step
        self._shift = self._step * 0x9E3779B97F4A7C15 >> 64

    def indices(self, positions: np.ndarray) -> np.ndarray:
        epochs, which = np.unique(positions // len(self._order), return_inverse=True)
        first = np.array([(self._first + epoch * self._shift) % self._step for epoch in epochs.tolist()], np.int64)
        points = self._slots.indices(positions) * self._step + first[which]
        return self._order[np.searchsorted(self._ends, points, side="right")].astype(np.int64)


class StagedOrder:
    """Order of a source whose examples have other weights from certain positions on: 12 bytes for each of all weights.

    Each array of weights has an `ExampleOrder` of its own, with epochs that begin where the array comes into effect.
    To interpolate, a schedule draws from two of these orders with shares that change linearly.

    Args:
        stages: (position, weights `[examples]`) in increasing order of the positions, the first at 0.
        interpolate: change the weights linearly from each position to the next, not at the positions.
    """

    def __init__(self, stages: Sequence[tuple[int, np.ndarray]], interpolate: bool, seed: int, shuffle: bool):
        self.shuffle = shuffle
        self._starts = np.array([start for start, _ in stages])
        self._orders = [
            ExampleOrder(weights, derive_seed(seed, f"weights {number}"), shuffle)
            for number, (_, weights) in enumerate(stages)
        ]
        self._schedule: ShareSchedule | None = None
        if interpolate:
            shares = list(zip(self._starts.tolist(), np.eye(len(stages)), strict=True))
            self._schedule = ShareSchedule(shares, True, len(stages[0][1]), derive_seed(seed, "stages"))

    def indices(self, positions: np.ndarray) -> np.ndarray:
        if self._schedule is None:
            stages = np.searchsorted(self._starts, positions, side="right") - 1
            ranks = positions - self._starts[stages]
        else:
            stages, ranks = self._schedule.locate(positions)
        found = np.empty_like(positions)
        for stage in np.unique(stages).tolist():
            chosen = stages == stage
            found[chosen] = self._orders[stage].indices(ranks[chosen])
        return found
