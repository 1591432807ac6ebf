"""Assigns a group to each position of a run, with shares of the groups that may change at given positions.

The run is cut into blocks. A block has a whole number of positions for each group, in random order. What a group gets
in a block above or below its exact share is carried into the next block, so after each block of a constant part the
count of each group differs from its exact share by about 1. After the last change, up to 256 blocks repeat.

Any position is found from tables of one number for each block and group: nothing is counted from the start of the run.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction

import numpy as np

from engine.base.duration import DATA_UNITS, Duration
from engine.base.errors import DataError
from engine.data.sampling.shuffle import PartPermutations, derive_seed

BLOCKS = 256  # most blocks of a part with constant shares; the part after the last change then repeats
RAMP_BLOCKS = 64  # in which shares change from one point to the next, at least
TABLE = 2**22  # entries of a table for one part: fewer blocks if there are many groups
PERIOD = 2**20  # positions after which the last part repeats, at least, unless its blocks are small


@dataclasses.dataclass(frozen=True)
class Percent:
    """A time as a share of the run, such as "12.5%"; `value` is from 0 to 100."""

    value: Fraction

    def __str__(self) -> str:
        return f"{Decimal(self.value.numerator) / self.value.denominator:f}%"


_PERCENT = re.compile(r"\s*(\d{1,3}(?:\.\d{1,13})?)\s*%\s*")


def _parse_time(text: str, where: str) -> Duration | Percent:
    """Parses "500 steps" or "50%". Raises FieldError and DataError."""
    if (match := _PERCENT.fullmatch(text)) is None:
        time = Duration.parse(text, where, (*DATA_UNITS, "%"))
        if time.is_clock:
            raise DataError(f"{where}: found '{time}'. Units here: {', '.join(DATA_UNITS)}, %.")
        return time
    percent = Percent(Fraction(match[1]))
    if percent.value > 100:
        raise DataError(f"{where}: found '{percent}'. Allowed: 0% to 100% of the run.")
    return percent


@dataclasses.dataclass(frozen=True)
class Times[T]:
    """Values by time, such as weights: `{"0 steps": ..., "10 epochs": ...}`.

    `run` is the number of examples that the run draws, of which a percentage is a share; None if it is not known.
    """

    points: tuple[tuple[Duration | Percent, T], ...]
    where: str
    run: int | None = None

    @classmethod
    def parse(cls, values: Mapping[str, T], where: str) -> "Times[T]":
        """Parses the times. Raises FieldError for one that is neither a duration of data nor a percentage."""
        points = [(_parse_time(str(time), where), value) for time, value in values.items()]
        if points[0][0].value != 0:
            raise DataError(f"{where}: the first time is '{points[0][0]}'. Start with '0 steps'.")
        return cls(tuple(points), where)

    @property
    def follows_run(self) -> bool:
        """Whether a time depends on the length of the run."""
        return any(isinstance(time, Percent) and time.value for time, _ in self.points)

    def positions(self, batch_size: int | None, epoch: int) -> list[tuple[int, T]]:
        """Returns the values by position.

        Args:
            batch_size: examples of a step; None if it is not known, as in a part of a mixture.
            epoch: examples of an epoch.

        Raises:
            DataError: a step or the run has no known length, or a time is before the previous one.
        """
        found: list[tuple[int, T]] = []
        for time, value in self.points:
            at = self._position(time, batch_size, epoch)
            if found and at < found[-1][0]:
                raise DataError(f"{self.where}: '{time}' is before the time above it. Sort the times.")
            if found and at == found[-1][0]:  # such as "0.1 epochs" and "0.2 epochs" of a few examples
                found.pop()
            found.append((at, value))
        return found

    def _position(self, time: Duration | Percent, batch_size: int | None, epoch: int) -> int:
        if not time.value:
            return 0
        if batch_size is None and (isinstance(time, Percent) or time.unit == "steps"):
            raise DataError(
                f"{self.where}: '{time}': a part of a mixture does not know the step. Write examples or epochs, "
                "which count the draws from this part, or change the weights of the mixture."
            )
        if isinstance(time, Duration):
            return math.ceil(time.examples(batch_size or 1, epoch))
        if self.run is None:
            raise DataError(
                f"{self.where}: '{time}': the length of the run is not known here. Call engine.data.sampling."
                "share_schedule.for_run(source, config.train), or write steps, examples or epochs."
            )
        return math.ceil(time.value * self.run / 100)


type Point = tuple[int, np.ndarray]
"""A position, and the shares of the groups from there on, float64 `[groups]`."""


class ShareSchedule:
    """Maps positions to groups, and to the number of earlier positions of the same group. A pure function of the seed.

    Args:
        points: in increasing order of their positions, the first at 0. Shares are at least 0, and some are above it.
        interpolate: change the shares linearly from each point to the next, not at the points.
        epoch: positions of a block where shares are constant.
        seed: seed of the order within blocks.
    """

    def __init__(self, points: Sequence[Point], interpolate: bool, epoch: int, seed: int):
        most = int(np.clip(TABLE // len(points[0][1]), 1, BLOCKS))
        shares = [found / math.fsum(found) for _, found in points]  # the same on every CPU; np.sum is not
        lengths, counts = [], []
        for number, (start, _) in enumerate(points[:-1]):
            size = points[number + 1][0] - start
            to = shares[number + 1] if interpolate else shares[number]
            if np.array_equal(shares[number], to):
                parts = _constant(size, epoch, most)
                targets = [shares[number]] * len(parts)
            else:
                parts = _equal(size, max(min(-(-size // epoch), most), min(RAMP_BLOCKS, most)))
                middle = (np.cumsum(parts) - np.array(parts) / 2) / size
                targets = [shares[number] * (1 - at) + to * at for at in middle.tolist()]
            lengths += parts
            counts += _apportion(parts, targets)
        self._repeats = sum(lengths)  # position from which the last part repeats
        last = [epoch] * int(np.clip(PERIOD // epoch, 1, most))
        lengths, counts = lengths + last, np.array([*counts, *_apportion(last, [shares[-1]] * len(last))])
        self._period, self._period_counts = sum(last), counts[-len(last) :].sum(axis=0)
        self._starts = np.cumsum([0, *lengths[:-1]])  # [blocks]
        self._ends = np.cumsum(counts, axis=1)  # [blocks, groups]: slots of a block, sorted by group
        # Slot s of a block, if it belongs to group g, is read number s + _rank_offset[block, g] of the group.
        self._rank_offset = np.cumsum(counts, axis=0) - self._ends
        self._lengths = np.array(lengths)
        self._slots = PartPermutations(self._lengths, derive_seed(seed, "slots"), True)

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the group of each position, and the number of earlier positions with this group, int64 `[n]`."""
        cycle = np.maximum(positions - self._repeats, 0) // self._period
        local = positions - cycle * self._period
        block = np.searchsorted(self._starts, local, side="right") - 1
        slot = self._slots.indices(block, cycle * self._lengths[block] + local - self._starts[block])
        group = np.empty_like(slot)
        for number in np.unique(block).tolist():
            chosen = block == number
            group[chosen] = np.searchsorted(self._ends[number], slot[chosen], side="right")
        return group, slot + self._rank_offset[block, group] + cycle * self._period_counts[group]


def _constant(size: int, epoch: int, most: int) -> list[int]:
    """Returns the lengths of blocks of one epoch each, the last one shorter; longer ones if there are too many."""
    whole = max(epoch, -(-size // most))
    return [min(whole, size - at) for at in range(0, size, whole)]


def _equal(size: int, count: int) -> list[int]:
    """Returns the lengths of `count` blocks of nearly equal length; of `size` blocks if that is less."""
    return np.diff(np.arange(min(count, size) + 1) * size // min(count, size)).tolist()


def _apportion(lengths: Sequence[int], shares: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns the count of each group in each block, int64 `[groups]`: largest remainders, carried to the next block.

    A group without a share gets nothing.
    """
    carry, found = np.zeros_like(shares[0]) if shares else np.zeros(0), []
    for length, share in zip(lengths, shares, strict=True):
        wanted = carry + length * share
        counts = np.floor(np.maximum(wanted, 0)).astype(np.int64)
        while (missing := length - int(counts.sum())) != 0:
            allowed = np.flatnonzero((share > 0) if missing > 0 else (counts > 0))
            order = allowed[np.argsort((wanted - counts)[allowed], kind="stable")]
            if missing > 0:
                counts[order[-missing:]] += 1
            else:
                counts[order[:-missing]] -= 1
        carry = wanted - counts
        found.append(counts)
    return found
