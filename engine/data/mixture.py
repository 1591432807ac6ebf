"""Mixtures: examples of several sources in fixed proportions.

The schedule (`mixture_schedule.py`) names the source of each position of a run; within a source the order is that of
the source's own sampler, with epochs of its own length. `grain.MapDataset.mix` does the same one example at a time, 40
times as slowly (`reader.py` has the numbers).
"""

import math
from collections.abc import Callable, Mapping

import numpy as np

from engine.config.errors import DataError, did_you_mean
from engine.data.mixture_schedule import schedule, shares
from engine.data.sampler import Sampler, gather, sampler_of
from engine.data.shuffle import derived
from engine.data.source import (
    PART,
    Example,
    Examples,
    Source,
    check_source,
    example_spec,
    fingerprint,
    has_transform,
    leaves,
    limited,
    name_of,
)
from engine.types import PyTree


class Mixture:
    """Examples of several sources by weight.

    Training: at each place of the run the schedule names a source, which gives its next example in the order of its own
    epochs: each of its examples exactly once in each of them. The example at a place is a pure function of the seed and
    the place. Changes at random are those of the source that an example comes from.

    `len`, and so an epoch of the mixture in `train.total` and other durations: as many examples as all sources have
    together. A source is then read more than once in an epoch, or in part, as the weights say.

    By index, as evaluations read: all examples of the first source (by name), then those of the second and so on, each
    once; weights count in training only. `data.limit` takes of every source a part, in proportion to their sizes.
    """

    def __init__(self, sources: Mapping[str, Source], weights: Mapping[str, float]):
        """Takes the sources by name; their names, not their sequence, decide the order of the run.

        Args:
            sources: of examples of the same structure, shapes and dtypes.
            weights: name of a source -> number above 0; only their proportions count.

        Raises:
            DataError: a weight or an example that does not fit, by name.
        """
        self._names = sorted(sources, key=str)
        _check_weights(self._names, weights)
        for name in self._names:
            check_source(sources[name], f"Mixture: source {name}")
        self.sources = {name: sources[name] for name in self._names}
        self.weights = {name: weights[name] for name in self._names}
        _check_examples(self.sources)
        self._ends = np.cumsum([len(source) for source in self.sources.values()])

    def __len__(self) -> int:
        """Examples of an epoch: those of all sources."""
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Example:
        number = int(np.searchsorted(self._ends, index, side="right"))
        source = self.sources[self._names[number]]
        return source[index - int(self._ends[number]) + len(source)]

    def take(self, indices: np.ndarray) -> Examples:
        """Returns the examples at `indices` `[batch]`, sources one after the other, as arrays `[batch, ...]`."""
        numbers = np.searchsorted(self._ends, indices, side="right")
        sources = list(self.sources.values())
        starts = self._ends - [len(source) for source in sources]
        return _merge(numbers, indices - starts[numbers], lambda number, own: gather(sources[number], own))

    def limited(self, count: int) -> "Mixture":
        """Returns a mixture of the first examples of each source, `count` in all. Raises DataError."""
        sizes = np.array([len(source) for source in self.sources.values()])
        if count < len(sizes):
            raise DataError(f"data.limit = {count}: a mixture of {len(sizes)} sources needs at least {len(sizes)}.")
        spare = np.cumsum(sizes - 1) * (count - len(sizes)) // max(1, len(self) - len(sizes))  # one of each, and these
        counts = 1 + np.diff(spare, prepend=0)
        parts = zip(self.sources.items(), counts.tolist(), strict=True)
        return Mixture({name: limited(source, part) for (name, source), part in parts}, self.weights)

    def fingerprint(self) -> str:
        return PART.join(
            f"{name} {self.weights[name]}: {part}"
            for name in self._names
            for part in fingerprint(self.sources[name]).split(PART)
        )

    def arranged(self, seed: int, shuffle: bool) -> "_Sampler":
        """Returns the examples in the order of a run (`sampler.py`). Raises DataError."""
        if has_transform(self):
            raise DataError(f"{name_of(self)} has a transform: a mixture uses those of its sources. Write it there.")
        parts = [sampler_of(source, derived(seed, str(name)), shuffle) for name, source in self.sources.items()]
        return _Sampler(parts, shares(list(self.weights.values())))


class _Sampler:
    """The order of a run; an address is that of the source's own arrangement * number of sources + source."""

    def __init__(self, parts: list[Sampler], counts: np.ndarray):
        self._parts, self._counts = parts, counts
        self._source = schedule(counts)  # [period]
        self._rank = np.empty_like(self._source)  # [period]: examples of the same source before this one
        for number, count in enumerate(counts):
            self._rank[self._source == number] = np.arange(count)
        self.changes = any(part.changes for part in parts)
        self.gathers = all(part.gathers for part in parts)

    def addresses(self, places: np.ndarray) -> np.ndarray:
        period, at = np.divmod(places, len(self._source))
        numbers = self._source[at]
        own_places = period * self._counts[numbers] + self._rank[at]
        addresses = np.empty_like(own_places)
        for number in np.unique(numbers):
            chosen = numbers == number
            addresses[chosen] = self._parts[number].addresses(own_places[chosen])
        return addresses * len(self._parts) + numbers

    def owner(self, address: int) -> tuple[Source, int]:
        own, number = divmod(address, len(self._parts))
        return self._parts[number].owner(own)

    def read(self, addresses: np.ndarray) -> Examples:
        own, numbers = np.divmod(addresses, len(self._parts))
        return _merge(numbers, own, lambda number, own: self._parts[number].read(own))


def _merge(numbers: np.ndarray, own: np.ndarray, read: Callable[[int, np.ndarray], Examples]) -> Examples:
    """Returns a batch whose row i is the example `own[i]` of source `numbers[i]`; each source is read once."""
    import jax

    places = {number: np.flatnonzero(numbers == number) for number in np.unique(numbers).tolist()}
    parts = [read(number, own[at]) for number, at in places.items()]

    def merge(*arrays: np.ndarray) -> np.ndarray:
        if len({array.shape[1:] for array in arrays}) > 1:
            raise ValueError
        merged = np.empty((len(numbers), *arrays[0].shape[1:]), np.result_type(*arrays))
        for at, array in zip(places.values(), arrays, strict=True):
            merged[at] = array
        return merged

    try:
        return jax.tree.map(merge, *parts)
    except ValueError as error:
        found = "; ".join(", ".join(f"{path} {list(leaf.shape[1:])}" for path, leaf in leaves(part)) for part in parts)
        raise DataError(f"Sources of a mixture give examples that differ: {found}. Bring all to one shape.") from error


def _check_weights(names: list[str], weights: Mapping[str, float]) -> None:
    if not names:
        raise DataError("Mixture: no sources. Give at least one: sources={NAME: SOURCE}, weights={NAME: NUMBER}.")
    for name in weights:
        if name not in names:
            near = did_you_mean(str(name), map(str, names))
            raise DataError(f"Mixture: a weight for {name}, but no source of that name.{near}")
    for name in names:
        if name not in weights:
            raise DataError(f"Mixture: no weight for source {name}. Give one: weights={{'{name}': NUMBER, ...}}.")
        weight = weights[name]
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise DataError(
                f"Mixture: weight {weight!r} of source {name}, allowed are numbers above 0. "
                "Leave a source out that is not to be read."
            )


def _check_examples(sources: Mapping[str, Source]) -> None:
    """Raises DataError where the examples of two sources differ in structure, shapes or dtypes."""
    import jax

    def text(tree: PyTree) -> str:
        return ", ".join(f"{path} {spec.dtype}{list(spec.shape)}" for path, spec in leaves(tree))

    (first, wanted), *others = ((name, example_spec(source)) for name, source in sources.items())
    for name, found in others:
        same = jax.tree.structure(found) == jax.tree.structure(wanted)
        if not same or jax.tree.leaves(found) != jax.tree.leaves(wanted):
            raise DataError(
                f"Mixture: examples of source {name} ({name_of(sources[name])}) hold {text(found)}; those of source "
                f"{first} ({name_of(sources[first])}) hold {text(wanted)}. Bring all to one structure, shape and "
                "dtype; documents of different lengths are packed first (engine.Packed), each source by itself."
            )
