"""Flat dicts of arrays, the form in which the compiled step takes parameters and model state.

A key is the path of a variable, such as "encoder/0/kernel".
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from engine.base.types import PyTree

Arrays = dict[str, jax.Array]
AbstractArrays = dict[str, jax.ShapeDtypeStruct]


def abstract_key() -> PyTree:
    """Returns a random key as jax.ShapeDtypeStruct, for a trace; a real one would compile two programs."""
    return jax.eval_shape(lambda: jax.random.key(0))


def cast(tree: PyTree, dtype: DTypeLike, keep: tuple[str, ...] = ()) -> PyTree:
    """Returns a pytree with floating-point leaves cast to `dtype`, except those with a name of `keep` in their path."""

    def leaf(path: tuple[object, ...], x: jax.Array) -> jax.Array:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        kept = not jnp.issubdtype(x.dtype, jnp.floating) or any(name in keep for name in names)
        return x if kept else x.astype(dtype)

    return jax.tree.map_with_path(leaf, tree)
