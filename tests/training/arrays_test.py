"""Casts of trees of arrays keep what is not floating point, and the entries of a given name."""

import jax
import jax.numpy as jnp

from engine.training.arrays import cast


def test_cast_keeps_integers_and_named_entries():
    tree = {"x": jnp.ones(2), "label": jnp.ones(2, jnp.int32), "future": {"xy": jnp.ones(2)}}
    out = cast(tree, jnp.bfloat16, ("future",))
    assert jax.tree.map(lambda x: x.dtype.name, out) == {
        "x": "bfloat16",
        "label": "int32",
        "future": {"xy": "float32"},
    }
