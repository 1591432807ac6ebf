"""Arrangements: the endless order in which a training run reads a source, addressed by place.

Owns: the interface of an arrangement, the usual one (a new permutation of the examples in every epoch), and the reading
of examples at indices, with the sentences that say which example went wrong. Does not own: the permutations themselves
(`shuffle.py`), and the orders of sources that bring their own (`packing.py`, `mixture.py`).

Terms. *Place*: a global example index, 0, 1, 2 ... over the whole run. *Address*: a number int64 that an arrangement
gives to what it reads at a place; that of the usual one is the example's index.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from engine.config.errors import DataError
from engine.data.shuffle import Order
from engine.data.source import Batch, Example, Source, has_take, has_transform, leaves, name_of, overrides


class Arrangement(Protocol):
    """A source in the order of a run: the example at a place is a pure function of (seed, place).

    It is read by several threads at once and pickled to worker processes.
    """

    changes: bool
    """Whether the source changes examples at random (`transform`)."""
    gathers: bool
    """Whether many examples are read at once in little more time than one."""

    def addresses(self, places: np.ndarray) -> np.ndarray:
        """Returns int64 `[n]` for places int64 `[n]`."""
        ...

    def read(self, addresses: np.ndarray) -> Batch:
        """Returns the examples `[n, ...]` at addresses `[n]`, before any change. Raises DataError."""
        ...

    def owner(self, address: int) -> tuple[Source, int]:
        """Returns the source whose `transform` changes the example at an address, and its number there."""
        ...


def arrange(source: Source, seed: int, shuffle: bool) -> Arrangement:
    """Returns the source's own arrangement (its method `arranged`) or the usual one.

    Raises:
        DataError: the source is empty, or a subclass changed its `__getitem__`, which its `arranged` does not know of.
    """
    if not hasattr(source, "arranged"):
        return Permuted(source, seed, shuffle)
    if not overrides(source, "arranged", "__getitem__"):
        raise DataError(
            f"{name_of(source)} changes __getitem__ but inherits `arranged`, by which training reads without that "
            "change. Make the change in transform(example, rng), or in the sources below."
        )
    return source.arranged(seed, shuffle)  # pyright: ignore[reportAttributeAccessIssue]


class Permuted:
    """Every example once in each epoch, by a new permutation; without `shuffle`, as they lie in the source."""

    def __init__(self, source: Source, seed: int, shuffle: bool):
        self._source = source
        self.changes = has_transform(source)
        self.gathers = has_take(source)
        self._order = Order(len(source), seed, shuffle)

    def addresses(self, places: np.ndarray) -> np.ndarray:
        return self._order.indices(places)

    def read(self, addresses: np.ndarray) -> Batch:
        return gather(self._source, addresses)

    def owner(self, address: int) -> tuple[Source, int]:
        return self._source, address


def gather(source: Source, indices: np.ndarray) -> Batch:
    """Returns the examples at `indices` int64 `[batch]` as a batch `[batch, ...]` of new arrays.

    Raises:
        DataError: names the first example that cannot be read, or that differs in its shape.
    """
    name = name_of(source)
    try:
        if has_take(source):
            return source.take(indices)  # pyright: ignore[reportAttributeAccessIssue]
    except DataError:
        raise  # a sentence already
    except Exception as error:
        _stack_each(source, indices)
        raise DataError(
            f"{name}.take failed for examples {_some(indices)}, which can be read one at a time: "
            f"{type(error).__name__}: {error}. Mend take, or remove it to read one example at a time."
        ) from error
    return _stack_each(source, indices)


def stack(examples: list[Example], called: Callable[[int], str]) -> Batch:
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


def _stack_each(source: Source, indices: np.ndarray) -> Batch:
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
