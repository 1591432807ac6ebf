"""Square matrices for the rows and the columns of each matrix, such as g g^T and g^T g, in an optimizer's state."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from engine.base.types import PyTree
from engine.optimizers.matrices import Matrices, MatrixForm, forms, is_masked

ROWS, COLUMNS = 0, 1

type Sides = dict[int, jax.Array]
"""ROWS or COLUMNS -> square matrices `[matrices, n, n]`, without a side that has no factor."""


class Places:
    """The places of the matrices among the parameters of an optimizer; the others are masked."""

    def __init__(self, updates: PyTree, matrices: Matrices):
        self._leaves, self._structure = jax.tree.flatten(updates, is_leaf=is_masked)
        self._here = [i for i, x in enumerate(self._leaves) if not is_masked(x)]
        self.forms: list[MatrixForm] = self.leaves(forms(matrices, updates))

    def leaves(self, tree: PyTree) -> list[Any]:
        """Returns what a pytree has for each matrix parameter."""
        found = jax.tree.leaves(tree, is_leaf=is_masked)
        return [found[i] for i in self._here]

    def gradients(self) -> list[jax.Array]:
        """Returns the float32 matrices `[matrices, rows, columns]` of each parameter."""
        return [form.split(self._leaves[i].astype(jnp.float32)) for i, form in zip(self._here, self.forms, strict=True)]

    def tree(self, values: Sequence[object]) -> PyTree:
        """Returns the pytree that has these values for the matrix parameters."""
        known = dict(zip(self._here, values, strict=True))
        return self._structure.unflatten([known.get(i, x) for i, x in enumerate(self._leaves)])

    def updates(self, directions: Sequence[jax.Array]) -> PyTree:
        """Returns the pytree of updates, in the dtype of the gradients, from matrices."""
        joined = zip(self._here, self.forms, directions, strict=True)
        return self.tree([form.join(u).astype(self._leaves[i].dtype) for i, form, u in joined])

    def sides(self, rows: PyTree, columns: PyTree) -> list[Sides]:
        """Returns the square matrices of each parameter from the pytrees of the state."""
        pairs = zip(self.leaves(rows), self.leaves(columns), strict=True)
        return [
            {side: x.reshape(-1, *x.shape[-2:]) for side, x in enumerate(pair) if not is_masked(x)} for pair in pairs
        ]

    def side(self, of: Sequence[Sides], side: int) -> PyTree:
        """Returns the pytree of one side, for the state."""
        return self.tree(
            [
                found[side].reshape(*form.leading, *found[side].shape[-2:]) if side in found else optax.MaskedNode()
                for form, found in zip(self.forms, of, strict=True)
            ]
        )


def squares(params: PyTree, matrices: Matrices, side: int, largest: int, diagonal: float = 0.0) -> PyTree:
    """Returns a multiple of the identity `[..., n, n]` for one side of each matrix.

    A side of more than `largest` has a MaskedNode.
    """

    def square(x: jax.Array, form: MatrixForm) -> jax.Array | optax.MaskedNode:
        size = form.size[side]
        if size > largest:
            return optax.MaskedNode()
        return jnp.broadcast_to(diagonal * jnp.eye(size), (*form.leading, size, size))

    return jax.tree.map(square, params, forms(matrices, params))


def outer_products(g: jax.Array, sides: Sides) -> Sides:
    """Returns g g^T and g^T g, for those sides."""
    return {side: product(g, g.mT) if side == ROWS else product(g.mT, g) for side in sides}


def in_sides(like: Sequence[Sides], values: Sequence[jax.Array]) -> list[Sides]:
    """Returns values, one for each side of each parameter in turn, by side."""
    remaining = iter(values)
    return [{side: next(remaining) for side in sides} for sides in like]


def product(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the product in full float32, also on GPUs and TPUs."""
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)
