"""Samplers: the endless order in which a training run reads a source, addressed by position.

A position is a global example index, 0, 1, 2 ... over the whole run. A sampler maps it to an address, a number int64
that names what is read there. The usual sampler draws a new permutation of the examples in every epoch, and its
addresses are their indices; packed sources and mixtures bring their own.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from engine.config.errors import DataError
from engine.data.shuffle import Order
from engine.data.source import Example, Examples, Source, has_take, has_transform, leaves, name_of, overrides


class Sampler(Protocol):
    """A source in the order of a run: the example at a position is a pure function of (seed, position).

    It is read by several threads at once and pickled to worker processes.
    """

    changes: bool
    """Whether the source changes examples at random (`transform`)."""
    gathers: bool
    """Whether many examples are read in little more time than one."""

    def addresses(self, positions: np.ndarray) -> np.ndarray:
        """Returns int64 `[n]` for positions int64 `[n]`."""
        ...

    def read(self, addresses: np.ndarray) -> Examples:
        """Returns the examples `[n, ...]` at addresses `[n]`, before any change. Raises DataError."""
        ...

    def owner(self, address: int) -> tuple[Source, int]:
        """Returns the source whose `transform` changes the example at an address, and its number there."""
        ...


def sampler_of(source: Source, seed: int, shuffle: bool) -> Sampler:
    """Returns the source's own sampler (its method `arranged`) or the usual one.

    Raises:
        DataError: the source is empty, or a subclass changed its `__getitem__`, which its `arranged` does not know of.
    """
    own: Callable[[int, bool], Sampler] | None = getattr(source, "arranged", None)
    if own is None:
        return Permuted(source, seed, shuffle)
    if not overrides(source, "arranged", "__getitem__"):
        raise DataError(
            f"{name_of(source)} changes __getitem__ but inherits `arranged`, by which training reads without that "
            "change. Make the change in transform(example, rng), or in the sources below."
        )
    return own(seed, shuffle)


class Permuted:
    """Every example once in each epoch, by a new permutation; without `shuffle`, in the order of the source."""

    def __init__(self, source: Source, seed: int, shuffle: bool):
        self._source = source
        self.changes: bool = has_transform(source)
        self.gathers: bool = has_take(source)
        self._order = Order(len(source), seed, shuffle)

    def addresses(self, positions: np.ndarray) -> np.ndarray:
        return self._order.indices(positions)

    def read(self, addresses: np.ndarray) -> Examples:
        return gather(self._source, addresses)

    def owner(self, address: int) -> tuple[Source, int]:
        return self._source, address


def gather(source: Source, indices: np.ndarray) -> Examples:
    """Returns the examples at `indices` int64 `[batch]` as a batch `[batch, ...]` of new arrays.

    Raises:
        DataError: names the first example that cannot be read, or that differs in its shape.
    """
    name = name_of(source)
    try:
        if has_take(source):
            return source.take(indices)
    except DataError:
        raise  # a sentence already
    except Exception as error:
        _stack_each(source, indices)
        raise DataError(
            f"{name}.take failed for examples {_some(indices)}, which can be read one at a time: "
            f"{type(error).__name__}: {error}. Mend take, or remove it to read one example at a time."
        ) from error
    return _stack_each(source, indices)


def stack(examples: Sequence[Example], called: Callable[[int], str]) -> Examples:
    """Returns the batch `[batch, ...]` of examples that must agree in structure and shapes.

    Args:
        examples: at least one.
        called: what follows "example" in the error, for a row: "3 of models.digits.Scans".

    Raises:
        DataError: names the first example whose shapes differ from those of row 0.
    """
    import jax

    try:
        return jax.tree.map(lambda *rows: np.stack(rows), *examples)
    except ValueError as error:
        first = _shapes(examples[0])
        for row, example in enumerate(examples):
            if (found := _shapes(example)) != first:
                raise DataError(
                    f"Example {called(row)} has {found}, example {called(0)} has {first}. "
                    "Bring all to one shape (crop or pad them) in the source."
                ) from error
        raise


def _some(indices: np.ndarray) -> str:
    return ", ".join(map(str, indices[:8])) + (" ..." if len(indices) > 8 else "")


def _stack_each(source: Source, indices: np.ndarray) -> Examples:
    """Reads one example at a time."""
    examples = []
    for index in indices.tolist():
        try:
            examples.append(source[index])
        except Exception as error:
            what = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}."
            raise DataError(
                f"Example {index} of {name_of(source)}: {what} Read it alone with source[{index}]; mend it, or leave "
                "it out: of the source, or with data.on_error=skip."
            ) from error
    return stack(examples, lambda row: f"{indices[row]} of {name_of(source)}")


def _shapes(example: Example) -> str:
    return ", ".join(f"{path} {list(np.shape(leaf))}" for path, leaf in leaves(example))
