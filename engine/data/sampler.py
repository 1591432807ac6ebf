"""Samplers: the infinite order in which a training run reads a source, by position.

A position is the global index of an example in the run, 0, 1, 2 ... A sampler maps a position to an address, an int64
that identifies the example to read. The default sampler, `Permuted`, reads a new permutation in every epoch, and its
addresses are indices into the source. Packed sources and mixtures have their own samplers.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from engine.config.errors import DataError
from engine.data.shuffle import EpochPermutation
from engine.data.source import (
    Example,
    Examples,
    Source,
    defined_with_or_after,
    has_take,
    has_transform,
    leaves_with_path,
    source_name,
)


class Sampler(Protocol):
    """The order of a run over a source: the example at a position is a pure function of (seed, position).

    Several threads use a sampler at once, and it is pickled to worker processes.
    """

    has_transform: bool
    """Whether the source has a random `transform`."""
    vectorized: bool
    """Whether reading many examples in one call takes little more time than reading one."""

    def addresses(self, positions: np.ndarray) -> np.ndarray:
        """Returns the addresses int64 `[n]` of positions int64 `[n]`."""
        ...

    def read(self, addresses: np.ndarray) -> Examples:
        """Returns the examples `[n, ...]` at addresses `[n]`, before `transform`. Raises DataError."""
        ...

    def locate(self, address: int) -> tuple[Source, int]:
        """Returns the source whose `transform` applies to the example at an address, and its index in that source."""
        ...


def make_sampler(source: Source, seed: int, shuffle: bool) -> Sampler:
    """Returns the sampler of the source's own method `sampler(seed, shuffle)`, or the default one.

    Raises:
        DataError: the source is empty, or a subclass overrides `__getitem__`, which its inherited `sampler` bypasses.
    """
    own: Callable[[int, bool], Sampler] | None = getattr(source, "sampler", None)
    if own is None:
        return Permuted(source, seed, shuffle)
    if not defined_with_or_after(source, "sampler", "__getitem__"):
        raise DataError(
            f"{source_name(source)} overrides __getitem__ but inherits `sampler`, through which training reads without "
            "that override. Make the change in transform(example, rng), or in the sources below."
        )
    return own(seed, shuffle)


class Permuted:
    """The default sampler: a new permutation of the source in every epoch; without `shuffle`, its stored order."""

    def __init__(self, source: Source, seed: int, shuffle: bool):
        self._source = source
        self.has_transform: bool = has_transform(source)
        self.vectorized: bool = has_take(source)
        self._permutation = EpochPermutation(len(source), seed, shuffle)

    def addresses(self, positions: np.ndarray) -> np.ndarray:
        return self._permutation.indices(positions)

    def read(self, addresses: np.ndarray) -> Examples:
        return gather(self._source, addresses)

    def locate(self, address: int) -> tuple[Source, int]:
        return self._source, address


def gather(source: Source, indices: np.ndarray) -> Examples:
    """Returns the examples at `indices` int64 `[batch]` as new arrays `[batch, ...]`.

    Raises:
        DataError: an example cannot be read, or its shapes differ; the text names the first such example.
    """
    name = source_name(source)
    try:
        if has_take(source):
            return source.take(indices)
    except DataError:
        raise  # its text already names the example
    except Exception as error:
        _stack_each(source, indices)
        raise DataError(
            f"{name}.take failed for examples {_some(indices)}, although each can be read by index: "
            f"{type(error).__name__}: {error}. Correct take, or remove it to read one example at a time."
        ) from error
    return _stack_each(source, indices)


def stack(examples: Sequence[Example], describe: Callable[[int], str]) -> Examples:
    """Returns the examples stacked to arrays `[batch, ...]`.

    Args:
        examples: at least one example; all have the same structure.
        describe: row -> what follows "example" in an error text, such as "3 of models.digits.Scans".

    Raises:
        DataError: the shapes of an example differ from those of row 0; the text names the first such example.
    """
    import jax

    try:
        return jax.tree.map(lambda *rows: np.stack(rows), *examples)
    except ValueError as error:
        first = _shapes(examples[0])
        for row, example in enumerate(examples):
            if (found := _shapes(example)) != first:
                raise DataError(
                    f"Example {describe(row)} has {found}, example {describe(0)} has {first}. "
                    "Bring all to one shape (crop or pad them) in the source."
                ) from error
        raise


def _some(indices: np.ndarray) -> str:
    return ", ".join(map(str, indices[:8])) + (" ..." if len(indices) > 8 else "")


def _stack_each(source: Source, indices: np.ndarray) -> Examples:
    """Returns the stacked examples, read one at a time."""
    examples = []
    for index in indices.tolist():
        try:
            examples.append(source[index])
        except Exception as error:
            what = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}."
            raise DataError(
                f"Example {index} of {source_name(source)}: {what} Read it with source[{index}] and repair it, remove "
                "it from the source, or set data.on_error=skip."
            ) from error
    return stack(examples, lambda row: f"{indices[row]} of {source_name(source)}")


def _shapes(example: Example) -> str:
    return ", ".join(f"{path} {list(np.shape(leaf))}" for path, leaf in leaves_with_path(example))
