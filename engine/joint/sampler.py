"""The order of a run over several datasets, each of which keeps the sampler, the epochs and the transform of its own.

In step n, row j of bundle b is example m * (rows of a batch) + b * rows + j of its dataset, where m is the number of
earlier steps that take the dataset. So batch n is a pure function of (seed, n).
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from engine.base.types import PyTree
from engine.data.batches import Batches
from engine.data.examples import Examples
from engine.data.sampling.sampler import Mark, Marks, Sampler, Sizes
from engine.data.sampling.shuffle import derive_seed
from engine.data.source import BaseSource
from engine.joint.bundles import Bundles
from engine.joint.plan import Plan

type Shape = tuple[tuple[str, int], ...]
"""The datasets of a batch, each with the number of its own shape."""


def shapes_of(sets: Sequence[Sequence[str]], counts: Mapping[str, int]) -> list[Shape]:
    """Returns the shapes of the batches.

    Args:
        sets: the sets of datasets that steps take.
        counts: name -> number of the shapes that batches of the dataset have.
    """
    return [
        tuple(zip(names, numbers, strict=True))
        for names in sets
        for numbers in itertools.product(*(range(counts[name]) for name in names))
    ]


class Part(Batches):
    """The batches of one dataset, of which single rows are read."""

    def read(self, addresses: np.ndarray, positions: np.ndarray, shape: int) -> Examples:
        """Returns the examples at addresses and positions `[n]` in one of the shapes, transformed and with their text.

        Raises:
            DataError: an example cannot be read, or its shapes differ from those of the others.
        """
        if self._sampler.is_shaped:
            addresses = np.array([self._sampler.with_shape(address, shape) for address in addresses.tolist()])
        if self._sampler.has_transform:
            return self._transformed(addresses, positions)
        return self._sampler.read(addresses)

    @property
    def sampler(self) -> Sampler:
        """The order of the dataset."""
        return self._sampler


@dataclasses.dataclass(frozen=True)
class Datasets:
    """What `Joint` reads.

    Attributes:
        sources: name -> dataset, sorted by name.
        rows: name -> examples in a bundle.
        plan: which datasets a step takes.
        shapes: the shapes of the batches, the largest last.
        steps: name -> steps of the run that take the dataset, for transforms; 0 if they are not known.
    """

    sources: Mapping[str, BaseSource]
    rows: Mapping[str, int]
    plan: Plan
    shapes: Sequence[Shape]
    steps: Mapping[str, int]


class JointSampler(Sampler):
    """Sampler of `Joint`. An address is position * shapes + number of the shape; a position is that of a bundle.

    Args:
        datasets: the datasets.
        batch_size: bundles of a batch.
        seed: seed of the run.
        shuffle: whether the datasets are shuffled.
    """

    def __init__(self, datasets: Datasets, batch_size: int, seed: int, shuffle: bool):
        self._rows, self._plan, self._shapes = datasets.rows, datasets.plan, datasets.shapes
        self._sources, self._batch_size = datasets.sources, batch_size
        self._numbers = {shape: number for number, shape in enumerate(self._shapes)}
        self._parts = {
            name: Part(
                source, batch_size * self._rows[name], derive_seed(seed, name), shuffle, None, datasets.steps[name]
            )
            for name, source in self._sources.items()
        }
        samplers = {name: part.sampler for name, part in self._parts.items()}
        self.is_shaped = len(self._shapes) > 1
        # Batches of several shapes are not read in one call.
        self.vectorized = not self.is_shaped and all(
            sampler.vectorized and not sampler.has_transform for sampler in samplers.values()
        )
        self.is_sized = all(sampler.is_sized for sampler in samplers.values())
        self.is_marked = any(sampler.is_marked for sampler in samplers.values())
        self.tag_names = tuple(f"{name}/{tag}" for name, sampler in samplers.items() for tag in sampler.tag_names)

    def addresses(self, positions: np.ndarray) -> np.ndarray:
        if not self.is_shaped:
            return positions
        steps, which = np.unique(positions // self._batch_size, return_inverse=True)
        shapes = np.array([self._shape(step) for step in steps.tolist()])
        return positions * len(self._shapes) + shapes[which]

    def _shape(self, step: int) -> int:
        """Returns the number of the shape of the batch of a step."""
        return self._numbers[
            tuple((name, self._parts[name].shape(self._plan.before(step, name))) for name in self._plan.taken(step))
        ]

    def shape_of(self, address: int) -> int:
        return address % len(self._shapes)

    def with_shape(self, address: int, shape: int) -> int:
        return address - address % len(self._shapes) + shape

    def locate(self, address: int) -> tuple[BaseSource, int]:
        """Raises NotImplementedError: a bundle holds examples of several sources."""
        raise NotImplementedError("A bundle of engine.Joint is no example of one source.")

    def read(self, addresses: np.ndarray) -> Examples:
        """Returns the bundles at addresses of one shape, transformed."""
        shape, parts = self._shapes[self.shape_of(int(addresses[0]))], dict[str, PyTree]()
        steps, bundles = np.divmod(addresses // len(self._shapes), self._batch_size)
        for name, number in shape:
            own, positions = self._examples(name, steps, bundles)
            found = self._parts[name].read(own.reshape(-1), positions.reshape(-1), number)
            parts[name] = found if self._rows[name] == 1 else _split(found, self._rows[name])
        return Bundles(parts, self._rows)

    def _examples(self, name: str, steps: np.ndarray, bundles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the addresses and the positions `[n, rows]` of the examples in bundles `[n]` of steps `[n]`."""
        count, part = self._rows[name], self._parts[name]
        rows = bundles[:, None] * count + np.arange(count)
        different, which = np.unique(steps, return_inverse=True)
        numbers = [self._plan.before(step, name) for step in different.tolist()]  # of the batches of the dataset
        if len(numbers) == 1:
            addresses = part.addresses(numbers[0])[rows]
        else:
            addresses = np.stack([part.addresses(number) for number in numbers])[which[:, None], rows]
        return addresses, np.array(numbers)[which][:, None] * part.batch_size + rows

    def _inner(self, addresses: np.ndarray) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """Returns name, indices of the bundles `[bundles]` and addresses `[bundles, rows]` of the examples in them."""
        steps, bundles = np.divmod(addresses // len(self._shapes), self._batch_size)
        found = []
        for step in dict.fromkeys(steps.tolist()):
            at = np.flatnonzero(steps == step)
            for name in self._plan.taken(step):
                found.append((name, at, self._examples(name, steps[at], bundles[at])[0]))
        return found

    def tag_counts(self, addresses: np.ndarray) -> np.ndarray:
        """Returns how many of the examples in the bundles have each tag of each dataset, int64 `[tags]`."""
        counts = {name: np.zeros(len(part.tag_names), np.int64) for name, part in self._parts.items()}
        for name, _, own in self._inner(addresses):
            if len(counts[name]):
                counts[name] += self._parts[name].sampler.tag_counts(own.reshape(-1))
        return np.concatenate([*counts.values()])

    def sizes(self, addresses: np.ndarray) -> Sizes:
        """Returns the sizes of the bundles: the sums over their examples."""
        found = Sizes(*np.zeros((3, len(addresses))))
        for name, at, own in self._inner(addresses):
            for to, values in zip(found, self._parts[name].sampler.sizes(own.reshape(-1)), strict=True):
                to[at] += np.reshape(values, own.shape).sum(axis=1)
        return found

    def costs(self, addresses: np.ndarray, source: BaseSource) -> np.ndarray:
        """Returns the costs of the bundles, the sums over their examples. Raises DataError if one is not known."""
        found = np.zeros(len(addresses))
        for name, part in self._parts.items():
            if not part.sampler.is_sized:
                part.sampler.costs(np.zeros(0, np.int64), self._sources[name])  # raises the error of unknown costs
        for name, at, own in self._inner(addresses):
            costs = self._parts[name].sampler.costs(own.reshape(-1), self._sources[name])
            found[at] += costs.reshape(own.shape).sum(axis=1)
        return found

    def seek(self, marks: Marks) -> None:
        for name, part in self._parts.items():
            start = f"{name}/"
            part.seek({key.removeprefix(start): mark for key, mark in marks.items() if key.startswith(start)})

    def marks(self, position: int) -> Marks:
        found: dict[str, Mark] = {}
        for name, part in self._parts.items():
            own = part.marks(self._plan.before(position // self._batch_size, name))
            found |= {f"{name}/{key}": mark for key, mark in own.items()}
        return found


class NamedOrder(Sampler):
    """The order of an evaluation of one dataset, whose examples it names.

    Args:
        name: name of the dataset.
        inner: its order.
    """

    def __init__(self, name: str, inner: Sampler):
        self._name, self._inner = name, inner
        self.is_shaped = inner.is_shaped

    def addresses(self, positions: np.ndarray) -> np.ndarray:
        return self._inner.addresses(positions)

    def read(self, addresses: np.ndarray) -> Examples:
        return Bundles({self._name: self._inner.read(addresses)}, {self._name: 1})

    def locate(self, address: int) -> tuple[BaseSource, int]:
        return self._inner.locate(address)

    def shape_of(self, address: int) -> int:
        return self._inner.shape_of(address)

    def with_shape(self, address: int, shape: int) -> int:
        return self._inner.with_shape(address, shape)


def _split(examples: PyTree, count: int) -> PyTree:
    """Returns arrays `[bundles * count, ...]` as `[bundles, count, ...]`."""
    import jax

    return jax.tree.map(lambda x: x.reshape(len(x) // count, count, *x.shape[1:]), examples)
