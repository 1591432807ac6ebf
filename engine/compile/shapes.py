"""Compiled steps as the trainer calls them: with the learning rates of the run, and one program for each shape."""

from collections.abc import Sequence
from typing import Any, Protocol

import jax

from engine.cluster import group
from engine.data.batch import Batch
from engine.parallel.memory import compiled_bytes
from engine.training.state import TrainState


class CompiledSteps(Protocol):
    """A compiled program of K steps."""

    def __call__(
        self, state: TrainState, batches: tuple[Batch, ...], skip_mask: jax.Array, /
    ) -> tuple[TrainState, jax.Array]:
        """Returns the new state and the metrics `[K, names, 2]`; the arrays of `state` are donated."""
        ...

    def as_text(self) -> str | None:
        """Returns the optimized HLO."""
        ...

    @property
    def device_bytes(self) -> int:
        """Bytes that the program needs on each device."""
        ...


class StepsOfRun:
    """A compiled program of K steps together with its last argument, the learning rates of the run.

    Args:
        compiled: the program.
        numbers: `RunOptimizer.numbers` on the devices.
    """

    def __init__(self, compiled: jax.stages.Compiled, numbers: jax.Array):
        self._compiled, self._numbers = compiled, numbers
        self._has_run = False

    def __call__(self, state: TrainState, batches: tuple[Batch, ...], skip_mask: jax.Array, /) -> tuple:
        if not self._has_run:
            self._has_run = True
            group.meet("the first step")  # compiled, with its first batch (`parallel/connect.py`)
        return self._compiled(state, batches, skip_mask, self._numbers)

    def as_text(self) -> str | None:
        return self._compiled.as_text()

    @property
    def device_bytes(self) -> int:
        """Bytes that the program needs on each device."""
        return compiled_bytes(self._compiled)


class ByShape:
    """Compiled programs that differ in the shapes of their batches; a call runs the program for its batches.

    Args:
        batches: an abstract batch of each program.
        programs: the programs, in the same order.
    """

    def __init__(self, batches: Sequence[Batch], programs: Sequence[CompiledSteps]):
        self._programs = {shapes_of(batch): program for batch, program in zip(batches, programs, strict=True)}

    def __call__(self, state: Any, batches: tuple[Batch, ...], *args: Any) -> Any:
        return self._programs[shapes_of(batches[0])](state, batches, *args)

    def as_text(self) -> str | None:
        """Returns the optimized HLO of the program with the largest batches."""
        return [*self._programs.values()][-1].as_text()

    @property
    def device_bytes(self) -> int:
        """Bytes that the program with the largest batches needs on each device."""
        return [*self._programs.values()][-1].device_bytes


def shapes_of(batch: Batch) -> tuple[object, ...]:
    """Returns the structure of a batch, and the shapes of its arrays."""
    leaves, structure = jax.tree.flatten(batch.examples)
    return structure, *[leaf.shape for leaf in leaves]
