"""Mixtures: a source that draws examples from several sources in given proportions.

A schedule assigns a source to each position of a run: `mixture_schedule.py` for weights that stay, `share_schedule.py`
for weights that change during a run. Within a source, its own sampler gives the order, with epochs of its own length.
`grain.MapDataset.mix` does the same one example at a time, 40 times as slowly (`reader.py` has the numbers).
"""

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from engine.base.duration import UNKNOWN_LENGTH
from engine.base.errors import DataError, did_you_mean
from engine.base.types import PyTree
from engine.data.adapt import Readable, as_source, counted
from engine.data.sampling.mixture_schedule import schedule, shares
from engine.data.sampling.sampler import Mark, Marks, Sampler, Sizes, make_sampler, read_examples
from engine.data.sampling.share_schedule import ShareSchedule, Times
from engine.data.sampling.shuffle import derive_seed
from engine.data.shared_arrays import empty
from engine.data.source import (
    SEPARATOR,
    BaseSource,
    Example,
    Examples,
    Source,
    example_spec,
    leaves_with_path,
    limited,
    source_name,
    source_text,
)


class Mixture(BaseSource):
    """A source that mixes examples of several sources by weight.

    - Training: a schedule assigns a source to each position of the run, and that source gives its next example. Each
      source runs through its own epochs, with each of its examples exactly once per epoch. The example at a position
      is a pure function of (seed, position). The transform of its own source is applied to it.
    - Length: `len`, and with it an epoch in `train.total` and other durations, is the number of examples of all sources
      together. In one epoch of the mixture a source may be read in part or more than once, depending on the weights.
    - Evaluation reads by index: all examples of the first source (sorted by name), then the second, and so on, each
      once. Weights have no effect.
    - `data.limit` takes a part of every source, in proportion to their sizes.
    """

    def __init__(
        self,
        sources: Mapping[str, Readable],
        weights: Mapping[str, float] | Mapping[str, Mapping[str, float]],
        *,
        interpolate: bool = False,
    ):
        """Creates the mixture. The order of a run depends on the names of the sources, not on their order in the dict.

        Args:
            sources: name -> source; their examples have the same structure, shapes and dtypes.
            weights: name of a source -> number above 0; only the proportions matter. Weights that change:
                time -> these, such as {"0 steps": {...}, "5000 steps": {...}} or "50%", where a weight may be 0.
            interpolate: change the proportions linearly from each time to the next, not at the times.

        Raises:
            DataError: a weight is missing, unknown or not above 0, or the examples of two sources differ.
            ConfigError: a time is not a duration.
        """
        self._names = sorted(sources, key=str)
        by_time = bool(weights) and all(isinstance(weight, Mapping) for weight in weights.values())
        points: Any = weights if by_time else {"0 steps": weights}
        for point in points.values():
            _check_weights(self._names, point, zero=by_time)
        self.sources: dict[str, Source] = {
            name: as_source(sources[name], f"Mixture: source {name}") for name in self._names
        }
        self.weights: Mapping[str, Any] = weights if by_time else {name: weights[name] for name in self._names}
        self.times, self._interpolate = Times.parse(points, "Mixture: weights"), interpolate
        if by_time:
            self.batch_sampler = self._sampler  # steps have a length only if the batch size is known
        _check_examples(self._parts)
        sizes = [len(source) for source in self._parts.values()]
        self._endless = max(sizes) >= UNKNOWN_LENGTH  # a stream of unknown length has no last example
        self._sizes = np.minimum(sizes, UNKNOWN_LENGTH // len(sizes))
        self._ends = np.cumsum(self._sizes)

    @property
    def _parts(self) -> dict[str, BaseSource]:
        return self.sources  # pyright: ignore[reportReturnType]

    def __len__(self) -> int:
        """Number of examples of all sources together, which is an epoch; UNKNOWN_LENGTH if one of them is unknown."""
        return UNKNOWN_LENGTH if self._endless else int(self._ends[-1])

    def __getitem__(self, index: int) -> Example:
        name, own = self.locate(index)
        return self._parts[name][own]

    def locate(self, index: int) -> tuple[str, int]:
        """Returns the name of the source that has the example at an index of the mixture, and its index there."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._names[number], index - int(self._ends[number] - self._sizes[number])

    def take(self, indices: np.ndarray) -> Examples:
        """Returns the examples at `indices` `[batch]` of the concatenated sources, as arrays `[batch, ...]`."""
        numbers = np.searchsorted(self._ends, indices, side="right")
        sources = list(self._parts.values())
        starts = self._ends - self._sizes
        return _merge(numbers, indices - starts[numbers], lambda number, own: read_examples(sources[number], own))

    def limited(self, count: int) -> "Mixture":
        """Returns a mixture of the first examples of each source, `count` in total.

        Raises:
            DataError: `count` is below the number of sources.
        """
        sizes = np.minimum(self._sizes, count) if self._endless else self._sizes
        if count < len(sizes):
            raise DataError(f"data.limit = {count}: a mixture of {len(sizes)} sources needs at least {len(sizes)}.")
        # Each source keeps one example; the rest is divided in proportion to the remaining sizes.
        extra_ends = np.cumsum(sizes - 1) * (count - len(sizes)) // max(1, sizes.sum() - len(sizes))
        counts = 1 + np.diff(extra_ends, prepend=0)
        parts = zip(self._parts.items(), counts.tolist(), strict=True)
        taken = {name: limited(source, part) for (name, source), part in parts}
        return Mixture(taken, self.weights, interpolate=self._interpolate)

    def with_run(self, examples: int) -> "Mixture":
        """Returns the mixture for a run of so many examples, of which times in percent are shares."""
        found = copy.copy(self)
        found.times = dataclasses.replace(self.times, run=examples)
        if self.defines("batch_sampler"):
            found.batch_sampler = found._sampler
        return found

    def counted(self) -> "Mixture":
        """Returns a mixture of known length, for which it reads streams of unknown length once."""
        sources = {name: counted(source) for name, source in self._parts.items()}
        return Mixture(sources, self.weights, interpolate=self._interpolate)

    def fingerprint(self) -> str:
        """Returns the fingerprints of the sources, each with its weight, or its weights by time."""
        changes = " then linearly " if self._interpolate else " then "

        def weight(name: str) -> str:
            points = self.times.points
            texts = [f"{value[name]}{f' at {time}' if len(points) > 1 else ''}" for time, value in points]
            return changes.join(texts)

        return SEPARATOR.join(
            f"{name} {weight(name)}: {part}"
            for name in self._names
            for part in self._parts[name].fingerprint().split(SEPARATOR)
        )

    def sampler(self, seed: int, shuffle: bool) -> "_MixtureSampler":
        """Returns the sampler of a training run (`sampler.py`).

        Raises:
            DataError: a subclass defines `transform` or `costs`, or weights change after steps of unknown length.
        """
        return self._sampler(seed, shuffle, None)

    def _sampler(self, seed: int, shuffle: bool, batch_size: int | None) -> "_MixtureSampler":
        for method, plural in {"transform": "transforms", "costs": "costs"}.items():
            if self.defines(method):
                raise DataError(
                    f"{source_name(self)} defines {method}, but a mixture applies the {plural} of its sources. "
                    "Define it in a source."
                )
        seeds = {name: derive_seed(seed, str(name)) for name in self._names}
        parts = [make_sampler(source, seeds[name], shuffle) for name, source in self._parts.items()]
        plan = self._schedule(seed, batch_size)
        return _MixtureSampler(parts, self._parts, plan)

    def _schedule(self, seed: int, batch_size: int | None) -> "_Schedule":
        if len(self.times.points) == 1:
            [(_, only)] = self.times.points
            return _FixedSchedule(shares([only[name] for name in self._names]))
        points = self.times.positions(batch_size, len(self))
        values = [(at, np.array([weights[name] for name in self._names], float)) for at, weights in points]
        return ShareSchedule(values, self._interpolate, len(self), derive_seed(seed, "mixture"))

    @functools.cached_property
    def measured(self) -> bool:
        """Whether the lengths of the examples are known without reading them, if they are ragged."""
        return all(source.measured for source in self._parts.values())


class _Schedule(Protocol):
    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the source of each position, and the number of its earlier positions with this source."""
        ...


class _FixedSchedule:
    """The periodic schedule of weights that stay, from the counts of the sources in a period `[sources]`."""

    def __init__(self, counts: np.ndarray):
        self._counts = counts
        self._source = schedule(counts)  # [period]
        self._rank = np.empty_like(self._source)  # [period]: earlier positions of the period with the same source
        for number, count in enumerate(counts):
            self._rank[self._source == number] = np.arange(count)

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        period, at = np.divmod(positions, len(self._source))
        numbers = self._source[at]
        return numbers, period * self._counts[numbers] + self._rank[at]

    def counts(self, position: int) -> np.ndarray:
        """Returns the number of earlier positions of each source, int64 `[sources]`."""
        period, at = divmod(position, len(self._source))
        return period * self._counts + np.bincount(self._source[:at], minlength=len(self._counts))


class _MixtureSampler(Sampler):
    """Sampler of a mixture; an address is (address in the source's sampler) * (number of sources) + source number.

    The names of its marks begin with the number of the source.

    Raises:
        DataError: the weights change during the run, which gives a stream its positions out of order.
    """

    def __init__(self, parts: list[Sampler], sources: Mapping[str, BaseSource], plan: _Schedule):
        self._parts, self._sources, self._plan = parts, list(sources.values()), plan
        self.has_transform = any(part.has_transform for part in parts)
        self.vectorized = all(part.vectorized for part in parts)
        self.reads_singly = all(part.reads_singly for part in parts)
        self.is_sized = all(part.is_sized for part in parts)
        streams = [str(name) for name, part in zip(sources, parts, strict=True) if part.is_marked]
        self.is_marked = bool(streams)
        if streams and not isinstance(plan, _FixedSchedule):
            raise DataError(
                f"Mixture: the weights change during the run, but {', '.join(streams)} is a stream, which is read in "
                "order. Use one weight for each source, or sources with random access."
            )
        within = [f"{name}/{tag}" for name, part in zip(sources, parts, strict=True) for tag in part.tag_names]
        self.tag_names = (*map(str, sources), *within)

    def tag_counts(self, addresses: np.ndarray) -> np.ndarray:
        """Returns how many of the examples at addresses are from each source, then have each tag of each source."""
        own, numbers = np.divmod(addresses, len(self._parts))
        found = [np.bincount(numbers, minlength=len(self._parts))]
        found += [part.tag_counts(own[numbers == at]) for at, part in enumerate(self._parts) if part.tag_names]
        return np.concatenate(found)

    def costs(self, addresses: np.ndarray, source: BaseSource) -> np.ndarray:
        if self.is_sized:
            return self.sizes(addresses).cost
        own, numbers = np.divmod(addresses, len(self._parts))
        found = np.zeros(len(addresses))
        for number, (part, inner) in enumerate(zip(self._parts, self._sources, strict=True)):
            found[numbers == number] = part.costs(own[numbers == number], inner)
        return found

    def addresses(self, positions: np.ndarray) -> np.ndarray:
        numbers, source_positions = self._plan.locate(positions)
        addresses = np.empty_like(source_positions)
        for number in np.unique(numbers):
            chosen = numbers == number
            addresses[chosen] = self._parts[number].addresses(source_positions[chosen])
        return addresses * len(self._parts) + numbers

    def locate(self, address: int) -> tuple[BaseSource, int]:
        own, number = divmod(address, len(self._parts))
        return self._parts[number].locate(own)

    def read(self, addresses: np.ndarray) -> Examples:
        own, numbers = np.divmod(addresses, len(self._parts))
        return _merge(numbers, own, lambda number, own: self._parts[number].read(own))

    def sizes(self, addresses: np.ndarray) -> Sizes:
        """Returns the sizes of the rows at addresses."""
        own, numbers = np.divmod(addresses, len(self._parts))
        found = Sizes(*np.zeros((3, len(addresses))))
        for number in np.unique(numbers).tolist():
            chosen = numbers == number
            for to, values in zip(found, self._parts[number].sizes(own[chosen]), strict=True):
                to[chosen] = values
        return found

    def seek(self, marks: Marks) -> None:
        for number, part in enumerate(self._parts):
            start = f"{number}/"
            part.seek({name.removeprefix(start): mark for name, mark in marks.items() if name.startswith(start)})

    def marks(self, position: int) -> Marks:
        found: dict[str, Mark] = {}
        if isinstance(self._plan, _FixedSchedule):
            for number, (part, own) in enumerate(zip(self._parts, self._plan.counts(position).tolist(), strict=True)):
                found |= {f"{number}/{name}": mark for name, mark in part.marks(own).items()}
        return found


def _merge(numbers: np.ndarray, own: np.ndarray, read: Callable[[int, np.ndarray], Examples]) -> Examples:
    """Returns a batch whose row i is the example at `own[i]` of source `numbers[i]`; reads each source in one call."""
    import jax

    rows = {number: np.flatnonzero(numbers == number) for number in np.unique(numbers).tolist()}
    parts = [read(number, own[at]) for number, at in rows.items()]

    def merge(*arrays: np.ndarray) -> np.ndarray:
        if len({array.shape[1:] for array in arrays}) > 1:
            raise ValueError
        merged = empty((len(numbers), *arrays[0].shape[1:]), np.result_type(*arrays))
        for at, array in zip(rows.values(), arrays, strict=True):
            merged[at] = array
        return merged

    try:
        return jax.tree.map(merge, *parts)
    except ValueError as error:
        found = "; ".join(
            ", ".join(f"{path} {list(leaf.shape[1:])}" for path, leaf in leaves_with_path(part)) for part in parts
        )
        raise DataError(f"The sources of a mixture give different shapes: {found}. Bring all to one shape.") from error


def _check_weights(names: list[str], weights: Mapping[str, float], zero: bool) -> None:
    """Raises DataError if weights are missing, unknown or not above 0, or 0 if that is allowed and one is above it."""
    if not names:
        raise DataError("Mixture: no sources. Pass at least one: sources={NAME: SOURCE}, weights={NAME: NUMBER}.")
    for name in weights:
        if name not in names:
            near = did_you_mean(str(name), map(str, names))
            raise DataError(f"Mixture: weights has {name}, but no source has that name.{near}")
    for name in names:
        if name not in weights:
            raise DataError(f"Mixture: no weight for source {name}. Add it: weights={{'{name}': NUMBER, ...}}.")
        weight = weights[name]
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 <= weight < math.inf or (weight == 0 and not (zero and any(weights.values()))):
            raise DataError(
                f"Mixture: weight {weight!r} of source {name}: allowed are numbers above 0. "
                "Remove a source that must not be read."
            )


def _check_examples(sources: Mapping[str, BaseSource]) -> None:
    """Raises DataError if the examples of two sources differ in structure, shapes or dtypes."""
    import jax

    def describe(tree: PyTree, texts: list[str]) -> str:
        numbers = [f"{path} {spec.dtype}{list(spec.shape)}" for path, spec in leaves_with_path(tree)]
        return ", ".join([*numbers, *(f"{path} text" for path in texts)])

    specs = {name: (example_spec(source), source_text(source)) for name, source in sources.items()}
    (first, (wanted, wanted_texts)), *others = specs.items()
    for name, (found, texts) in others:
        same = jax.tree.structure(found) == jax.tree.structure(wanted) and texts == wanted_texts
        if not same or jax.tree.leaves(found) != jax.tree.leaves(wanted):
            raise DataError(
                f"Mixture: examples of source {name} ({source_name(sources[name])}) hold {describe(found, texts)}, but "
                f"those of source {first} ({source_name(sources[first])}) hold {describe(wanted, wanted_texts)}. Bring "
                "all to one structure, shape and dtype, or train on them with engine.Joint, as datasets of different "
                "labels. Pack documents of different lengths first (engine.Packed), each source separately."
            )
