"""Packs small arrays of one pytree into few vectors, so that a GPU computes all of them in one kernel.

XLA starts a kernel for each array of an update, and often one more to change its layout. A model of 40 parameters has
120 arrays of parameters and moments, whose kernels take a microsecond and start in three.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from engine.base.types import PyTree
from engine.training.arrays import Arrays

LARGEST = 1 << 18
"""Most elements of an array that is packed: its memory traffic takes a GPU less time than the start of a kernel."""
MOST = 48
"""Most arrays of a vector. XLA does not join more than 96 arrays in one kernel."""
KERNEL = 4
"""Least dimensions of the kernel of a convolution over two dimensions."""

type Packed = tuple[list[jax.Array], list[jax.Array]]
"""Vectors, and the arrays that are not packed."""


@dataclasses.dataclass(frozen=True)
class Packing:
    """Which arrays of a pytree are in which vector; created by `Packing.of`."""

    structure: Any  # of JAX's type PyTreeDef
    shapes: tuple[tuple[int, ...], ...]
    vectors: tuple[tuple[int, ...], ...]
    """Numbers of the leaves in each vector: arrays of one data type in the same dict or list."""

    @classmethod
    def of(cls, tree: PyTree) -> "Packing":
        """Returns the packing of arrays of a pytree."""
        leaves, structure = jax.tree.flatten_with_path(tree)
        groups: dict[tuple[str, str], list[int]] = {}
        for number, (path, x) in enumerate(leaves):
            if x.ndim and x.size <= LARGEST and jnp.issubdtype(x.dtype, jnp.floating):
                groups.setdefault((jax.tree_util.keystr(path[:-1]), str(x.dtype)), []).append(number)
        vectors = [
            tuple(numbers[first : first + MOST])
            for numbers in groups.values()
            if len(numbers) > 1
            for first in range(0, len(numbers), MOST)
        ]
        return cls(structure, tuple(x.shape for _, x in leaves), tuple(vectors))

    def pack(self, tree: PyTree) -> Packed:
        """Returns the vectors of a pytree, and its other arrays."""
        leaves, packed = jax.tree.leaves(tree), {n for numbers in self.vectors for n in numbers}
        vectors = [jnp.concatenate([flat(leaves[n]) for n in numbers]) for numbers in self.vectors]
        return vectors, [x for n, x in enumerate(leaves) if n not in packed]

    def unpack(self, packed: Packed) -> PyTree:
        """Returns the pytree of vectors and other arrays."""
        leaves: dict[int, jax.Array] = {}
        for numbers, vector in zip(self.vectors, packed[0], strict=True):
            shapes = [self.shapes[n] for n in numbers]
            leaves |= {n: part(vector, shapes, place) for place, n in enumerate(numbers)}
        rest = iter(packed[1])
        found = [leaves[n] if n in leaves else next(rest) for n in range(len(self.shapes))]
        return jax.tree.unflatten(self.structure, found)


def flat(x: jax.Array) -> jax.Array:
    """Returns an array as a vector. An array of four dimensions or more is the kernel of a convolution.

    Its last dimension, the outputs, comes first: cuDNN reads kernels so, and writes their gradients so.
    """
    return (jnp.moveaxis(x, -1, 0) if x.ndim >= KERNEL else x).reshape(-1)


def part(vector: jax.Array, shapes: Sequence[tuple[int, ...]], number: int) -> jax.Array:
    """Returns an array of a vector of arrays of these shapes, which `flat` has made."""
    first = sum(map(math.prod, shapes[:number]))
    shape = shapes[number]
    x = vector[first : first + math.prod(shape)]
    return jnp.moveaxis(x.reshape(shape[-1], *shape[:-1]), 0, -1) if len(shape) >= KERNEL else x.reshape(shape)


def cast_together(params: Arrays, dtype: DTypeLike) -> Arrays:
    """Returns floating-point parameters cast to `dtype`, as parts of few vectors.

    So the layout that a layer wants for its parameter is not that of the update, which would be computed in it and then
    changed back. The gradient of each parameter is cast on its own.
    """
    packing = Packing.of(params)

    def together(params: Arrays) -> Arrays:
        packed = jax.tree.map(lambda x: x.astype(dtype), packing.pack(params))
        return packing.unpack(jax.lax.optimization_barrier(packed))

    call = jax.custom_vjp(together)
    types = {path: x.dtype for path, x in params.items()}
    call.defvjp(lambda x: (together(x), None), lambda _, d: ({path: d[path].astype(types[path]) for path in d},))
    return call(params)


def norm_and_arrays(tree: PyTree) -> tuple[jax.Array, PyTree]:
    """Returns the global norm of floating-point arrays, computed of their vectors, and the arrays as parts of these."""
    packing = Packing.of(tree)
    # Without the barrier XLA would reduce each array on its own again.
    packed = jax.lax.optimization_barrier(packing.pack(tree))
    squares = [jnp.sum(x.astype(jnp.float32) ** 2) for x in jax.tree.leaves(packed)]
    return jnp.sqrt(jnp.stack(squares).sum()), packing.unpack(packed)
