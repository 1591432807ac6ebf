"""Draws some examples of a source more often than others: by weights of examples or tags, or by shares of tags.

With one tag for each example, a schedule (`share_schedule.py`) assigns a tag to each position of the run, and the
examples of a tag follow each other in epochs of their own. With a weight for each example, each epoch is a systematic
sample (Madow and Madow 1944): equally spaced points on a line on which each example has a length of its weight. Both
draw without replacement as far as the weights allow: the counts are no random numbers.
"""

import copy
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from engine.base.errors import DataError, did_you_mean
from engine.data.sampling.sampler import Order, PermutationSampler
from engine.data.sampling.share_schedule import Times
from engine.data.sampling.tags import FILES, Tags, TagsArgument, find_tags, read_array
from engine.data.sampling.weighted_order import ExampleOrder, StagedOrder, TagOrder
from engine.data.source import SEPARATOR, BaseSource, Example, Source, limited, source_name
from engine.data.source_adapter import indexed

BALANCES = ("natural", "class", "sqrt", "repeat")
INDEX_METHODS = ("lengths", "field_lengths", "costs")  # methods of the wrapped source
MOST_WEIGHT = 1e100

type Factors = Mapping[str, float]
"""Tag -> number."""
type Weights = str | npt.ArrayLike | Factors
"""Weights of examples, the path of a file that holds them, or weights of tags."""


class Weighted(BaseSource):
    """A source that draws some of the examples of another source more often than others in training.

    - By tag, if each example has one: a schedule decides the share of each tag, exact to about one example in each
      epoch. The examples of a tag are drawn in epochs of their own: each once, in a new order, then each again.
    - By example: an example whose weight is w is drawn N * w / (sum of all weights) times in an epoch of N draws,
      rounded up or down. Over many epochs, the mean is exact.
    - Length: `len`, and with it an epoch in `train.total` and other durations, is the number of examples of the source.
    - Evaluation reads each example once. `data.limit` takes the first examples, with their tags and weights.

    The example at a position is a pure function of (seed, position). The source applies its own `transform`. Ragged
    examples: weight them first, then pad: `Padded(Weighted(...), ...)` or `Bucketed`. `Packed` takes no weights.
    """

    def __init__(
        self,
        source: Source,
        weights: Weights | Mapping[str, Weights] | None = None,
        *,
        tags: TagsArgument = None,
        balance: str | Factors | Mapping[str, str | Factors] | None = None,
        threshold: float = 0.001,
        interpolate: bool = False,
        cache: str | None = None,
    ):
        """Creates the source from `weights` or `balance`.

        Args:
            source: source of the examples; not one with a sampler of its own, such as a mixture.
            weights: how often an example is drawn, relative to others, at least 0: tag -> weight of each of its
                examples, 1 if it is missing; of several tags of an example, the largest counts. Or one number for each
                example: an array, or the path of an `.npy`, `.npz` or `.parquet` file.
            tags: one tag, or a list of tags, of each example: an array, such a path, the name of an entry of the
                examples ("label", "scene/kind"), or a function of an example or its dotted path. An entry or a
                function reads all examples once. A bool array `[examples, tags]` has several tags for each example; the
                array `names` of an `.npz` file names its columns. None calls the method `tags()` of the source.
            balance: shares of the tags. "natural": as in the source. "class": equal. "sqrt": in proportion to the
                square root of the number of examples. "repeat": examples with rare tags are repeated as in LVIS (Gupta
                et al. 2019), by max(1, sqrt(threshold / share of the examples with the tag)). Or tag -> share, for
                all tags.
            threshold: for "repeat": tags of a smaller share of the examples are rare.
            interpolate: change the shares linearly from each time to the next, not at the times.
            cache: path of a file that keeps tags which were read from the examples, with a checksum.

        `weights` and `balance` may change during the run: {"0 steps": "natural", "5 epochs": "class"}. A time is in
        steps, examples or epochs, or a percentage of the run ("50%"). Weights of examples: {"0 steps": "easy.npy",
        "50%": {}}, where {} is 1 for each.

        Raises:
            DataError: an argument is invalid, or an example cannot be read.
            ConfigError: a time is not a duration, or a function does not exist.
        """
        self._name = source_name(self)
        source = indexed(source, f"{self._name}: source")
        _check_plain(source, self)
        self.source, self._threshold, self._interpolate = source, threshold, interpolate
        if (weights is None) == (balance is None):
            raise DataError(f"{self._name}: give either weights or balance. For equal classes: balance='class'.")
        if not threshold > 0:
            raise DataError(f"{self._name}: threshold = {threshold}: allowed are numbers above 0.")
        self._tags: Tags | None = None
        self._weights: list[np.ndarray] | None = None
        """Weights of the examples at each of the times; None if the tags have shares."""
        self._order: tuple[tuple[int, bool, int | None], Order] | None = None
        self._argument = "weights" if balance is None else "balance"
        self.times: Times[Any] = self._parse(weights if balance is None else balance)
        by_tag = [isinstance(value, Mapping) or balance is not None for _, value in self.times.points]
        if all(by_tag) or tags is not None or source.defines("tags") or self._names_tags():
            self._tags = find_tags(source, tags, cache, self._name)
        self._check_points()
        if not all(by_tag) or (self._tags is not None and self._tags.ends is not None):
            self._weights = [self._example_weights(value) for _, value in self.times.points]
        self._delegate()

    def _delegate(self) -> None:
        self.delegate(self.source, "take", *INDEX_METHODS)

    def _check_weights(self, given: str | npt.ArrayLike) -> np.ndarray:
        """Returns the weight of each example, float64 `[examples]`."""
        where = f"{self._name}: weights"
        if isinstance(given, str):
            if not given.endswith(FILES):
                raise DataError(f"{where} = {given!r}: allowed are numbers, or a file ({', '.join(FILES)}).")
            given, _ = read_array(given, "weights", where)
        found = np.asarray(given)
        if found.dtype.kind not in "iufb" or found.shape != (len(self.source),):
            raise DataError(
                f"{where}: found {found.dtype}{list(found.shape)}: allowed is one number for each of the "
                f"{len(self.source)} examples, or tag -> number."
            )
        found = found.astype(np.float64)
        if not ((found >= 0) & (found < MOST_WEIGHT)).all() or not found.any():
            raise DataError(f"{where}: allowed are numbers from 0 to {MOST_WEIGHT:.0e}, and some above 0.")
        return found

    def _parse(self, given: Any) -> Times[Any]:
        """Returns the shares or weights by time, with the weights of examples as arrays. Raises DataError."""
        by_time = isinstance(given, Mapping) and any(map(self._is_point, given.values()))
        points = given if by_time else {"0 steps": given}
        if self._argument == "weights":
            points = {
                time: value if isinstance(value, Mapping) else self._check_weights(value)
                for time, value in points.items()
            }
        return Times.parse(points, f"{self._name}: {self._argument}")

    def _is_point(self, value: Any) -> bool:
        """Returns whether a value is that of a time, and not the number of a tag."""
        is_array = isinstance(value, Sequence) or np.ndim(value) > 0  # arrays of NumPy, JAX and others have dimensions
        return isinstance(value, str | Mapping) or (is_array and self._argument == "weights")

    def _names_tags(self) -> bool:
        return any(isinstance(value, Mapping) and value for _, value in self.times.points)

    def _check_points(self) -> None:
        """Raises DataError for unknown tags and other values."""
        for _, value in self.times.points:
            if self._tags is not None and not isinstance(value, np.ndarray):
                self._check_point(value)

    def _check_point(self, value: Any) -> None:
        assert self._tags is not None
        where, names = f"{self._name}: {self._argument}", self._tags.names
        if isinstance(value, str) and self._argument == "balance":
            if value not in BALANCES:
                near = did_you_mean(value, BALANCES)
                raise DataError(f"{where}: found {value!r}. Allowed: {', '.join(BALANCES)}, or tag -> share.{near}")
            return
        if not isinstance(value, Mapping):
            raise DataError(f"{where}: found {value!r}, allowed is tag -> number.")
        for tag, number in value.items():
            if str(tag) not in names:
                near = did_you_mean(str(tag), names)
                shown = ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")
                raise DataError(f"{where} has {tag}, but no example has that tag. Tags: {shown}.{near}")
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < MOST_WEIGHT:
                raise DataError(f"{where}: {number!r} for {tag}: allowed are numbers from 0 to {MOST_WEIGHT:.0e}.")
        if self._argument == "balance":
            missing = set(names) - set(map(str, value))
            if missing:
                raise DataError(f"{where}: no share for {sorted(missing)[0]}. Give one to each tag; 0 leaves it out.")
        if self._tags.ends is None and not self._shares(value, self._tags.sizes).any():
            raise DataError(f"{where}: no example has a tag whose number is above 0.")

    def _shares(self, value: "str | Factors", sizes: np.ndarray) -> np.ndarray:
        """Returns the share of each tag, which need not sum to 1; 0 for a tag without examples, float64 `[tags]`."""
        assert self._tags is not None
        if isinstance(value, Mapping):
            numbers, missing = {str(tag): number for tag, number in value.items()}, float(self._argument == "weights")
            factors = np.array([numbers.get(name, missing) for name in self._tags.names], np.float64)
            return factors * (sizes if self._argument == "weights" else sizes > 0)
        if value == "class":
            return (sizes > 0).astype(np.float64)
        if value == "sqrt":
            return np.sqrt(sizes)
        return sizes * self._repeats(sizes) if value == "repeat" else sizes.astype(np.float64)

    def _repeats(self, sizes: np.ndarray) -> np.ndarray:
        """Returns the repeat factor of each tag (Gupta et al. 2019, repeat factor sampling), float64 `[tags]`."""
        return np.maximum(1, np.sqrt(self._threshold * len(self.source) / np.maximum(sizes, 1)))

    def _example_weights(self, value: Any) -> np.ndarray:
        """Returns the weight of each example at one of the times, float64 `[examples]`."""
        if isinstance(value, np.ndarray):
            return value
        if self._tags is None or value == "natural":  # without tags, an empty dict
            return np.ones(len(self))
        if value == "repeat":
            return self._tags.largest(self._repeats(self._tags.sizes))
        if not isinstance(value, Mapping) or self._argument == "balance":
            raise DataError(
                f"{self._name}: {self._argument}: examples have several tags, so shares of tags cannot be given. Use "
                "balance='repeat', weights={TAG: NUMBER, ...}, or tags with one for each example."
            )
        numbers = {str(tag): number for tag, number in value.items()}
        found = self._tags.largest(np.array([numbers.get(name, 1.0) for name in self._tags.names]))
        if not found.any():
            raise DataError(f"{self._name}: weights: no example has a weight above 0.")
        return found

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        return self.source[index]

    def with_run(self, examples: int) -> "Weighted":
        """Returns the source for a run of so many examples, of which times in percent are shares."""
        found = copy.copy(self)
        found.times = dataclasses.replace(self.times, run=examples)
        found._order = None
        return found

    def limited(self, count: int) -> "Weighted":
        """Returns a source of the first `count` examples."""
        part = copy.copy(self)
        for method in ("take", *INDEX_METHODS):
            part.__dict__.pop(method, None)
        part.source, part._order = limited(self.source, count), None
        part._weights = None if self._weights is None else [weights[:count] for weights in self._weights]
        part._tags = None if self._tags is None else self._tags.limited(count)
        part._delegate()
        return part

    def fingerprint(self) -> str:
        """Returns the fingerprint of the source, and what decides how often each example is drawn."""
        texts, times = [], self.times.points
        arrays = self._weights or [None] * len(times)  # for the first examples only, if there is a limit
        for (time, value), weights in zip(times, arrays, strict=True):
            digest = "" if weights is None else xxhash.xxh3_64(weights).hexdigest()
            text = f"weights {digest}" if isinstance(value, np.ndarray) else _text(value, self._threshold)
            texts.append(f"{text} at {time}" if len(times) > 1 else text)
        how = (" then linearly " if self._interpolate else " then ").join(texts)
        if self._tags is not None and not all(isinstance(value, np.ndarray) for _, value in times):
            how = f"{self._argument} of tags {self._tags.digest()}: {how}"
        return f"{self.source.fingerprint()}{SEPARATOR}{how}"

    @functools.cached_property
    def tag_names(self) -> tuple[str, ...]:
        """Names of the tags; none if the examples have no tags."""
        return () if self._tags is None else self._tags.names

    def tag_counts(self, indices: np.ndarray) -> np.ndarray:
        """Returns how many of the examples at `indices` have each tag, int64 `[tags]`."""
        return np.zeros(0, np.int64) if self._tags is None else self._tags.counts(indices)

    def sampler(self, seed: int, shuffle: bool) -> "_WeightedSampler":
        """Returns the sampler of a training run that does not know the batch size, as in a mixture."""
        return _WeightedSampler(self, seed, shuffle, self.weighted_order(seed, shuffle, None))

    def batch_sampler(self, seed: int, shuffle: bool, batch_size: int) -> "_WeightedSampler":
        """Returns the sampler of a training run with batches of so many examples (`sampler.py`)."""
        return _WeightedSampler(self, seed, shuffle, self.weighted_order(seed, shuffle, batch_size))

    def weighted_order(self, seed: int, shuffle: bool, batch_size: int | None) -> Order:
        """Returns the index of the example at each position (`sampler.make_order`).

        Raises:
            DataError: a subclass defines `transform`, no example can be drawn, or a time has no known position.
        """
        if self.has_transform:
            raise DataError(f"{self._name} defines transform, but its source applies its own. Define it in the source.")
        key = (seed, shuffle, batch_size)
        if self._order is None or self._order[0] != key:
            self._order = (key, self._make_order(*key))  # reports and metrics of a run use the order of its batches
        return self._order[1]

    def _make_order(self, seed: int, shuffle: bool, batch_size: int | None) -> Order:
        if self._weights is not None:
            points = tuple(zip([time for time, _ in self.times.points], self._weights, strict=True))
            stages = dataclasses.replace(self.times, points=points).positions(batch_size, len(self))
            if not all(weights.any() for _, weights in stages):
                raise DataError(f"{self._name}: data.limit leaves no example with a weight above 0. Raise it.")
            if len(stages) > 1:
                return StagedOrder(stages, self._interpolate, seed, shuffle)
            return ExampleOrder(stages[0][1], seed, shuffle)
        assert self._tags is not None
        sizes = self._tags.sizes
        shares = [(at, self._shares(value, sizes)) for at, value in self.times.positions(batch_size, len(self))]
        if not all(found.any() for _, found in shares):
            raise DataError(f"{self._name}: data.limit leaves no example of the tags that are drawn. Raise it.")
        return TagOrder(self._tags.numbers, shares, self._interpolate, seed, shuffle)


class _WeightedSampler(PermutationSampler):
    """Sampler of a weighted source; its addresses are indices into the source."""

    def __init__(self, weighted: Weighted, seed: int, shuffle: bool, order: Order):
        super().__init__(weighted.source, seed, shuffle, order)
        self._weighted, self.tag_names = weighted, weighted.tag_names

    def tag_counts(self, addresses: np.ndarray) -> np.ndarray:
        """Returns how many of the examples at addresses have each tag, int64 `[tags]`."""
        return self._weighted.tag_counts(addresses)


def _text(value: str | Factors, threshold: float) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{tag} {number}" for tag, number in sorted(value.items(), key=str))
    return f"{value} above {threshold}" if value == "repeat" else value


def _check_plain(source: BaseSource, owner: Weighted) -> None:
    """Raises DataError if a source has its own sampler."""
    if not source.has_sampler:
        return
    raise DataError(
        f"{source_name(owner)}: {source_name(source)} has its own sampler. Weight the examples first: "
        "Padded(Weighted(...), ...), Mixture({NAME: Weighted(...), ...}, weights), Balanced(Weighted(...), ranks)."
    )
