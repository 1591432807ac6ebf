"""Functions on vectors: the results are those of the arrays, and what is element-wise is computed once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from engine.training.packing import Packing
from engine.training.vectors import on_vectors

RANDOM = np.random.default_rng(0)
SHAPES = {"conv": (3, 3, 2, 5), "dense": (5, 4), "bias": (4,), "scale": (5,), "number": ()}
PARAMS, GRADS = ({k: jnp.asarray(RANDOM.normal(size=s), jnp.float32) for k, s in SHAPES.items()} for _ in range(2))
ADAMW = optax.adamw(0.1, mask={name: name in ("conv", "dense") for name in SHAPES})


def update(params, state, grads, ok):
    """A step of AdamW whose weight decay leaves out some arrays."""
    updates, new = ADAMW.update(grads, state, params)
    new = optax.apply_updates(params, updates), new
    return jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, (params, state))


def equations(jaxpr, name):
    inner = [e.params["jaxpr"].jaxpr for e in jaxpr.eqns if "jaxpr" in e.params]
    return [e for e in jaxpr.eqns if e.primitive.name == name] + [e for j in inner for e in equations(j, name)]


@pytest.mark.parametrize("ok", [True, False])
def test_an_update_of_vectors_equals_that_of_arrays(ok):
    args = PARAMS, ADAMW.init(PARAMS), GRADS, ok
    wanted = jax.jit(update)(*args)
    found = jax.jit(lambda *args: on_vectors(update, *args))(*args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), found, wanted)


def test_an_update_is_computed_once_and_joined_where_arrays_differ():
    state = ADAMW.init(PARAMS)
    jaxpr = jax.make_jaxpr(lambda *args: on_vectors(update, *args))(PARAMS, state, GRADS, True).jaxpr
    assert len(equations(jaxpr, "sqrt")) == 2  # of the vector, and of the number
    vector = sum(x.size for x in PARAMS.values() if x.ndim)
    wide = [e for e in equations(jaxpr, "select_n") if str(e.outvars[0].aval) == f"float32[{vector}]"]
    assert len(wide) == 2 + 2 + 1  # both moments, parameters with and without decay, and which of these


def test_each_array_keeps_its_own_numbers():
    def scaled(params):
        return {name: x * (number % 2 + 1.5) for number, (name, x) in enumerate(params.items())}

    found = jax.jit(lambda params: on_vectors(scaled, params))(PARAMS)
    jax.tree.map(np.testing.assert_array_equal, found, jax.jit(scaled)(PARAMS))


def test_what_is_not_elementwise_is_computed_of_the_arrays():
    def normalized(params, others):
        rows = {name: x / jnp.linalg.norm(x) + params["number"] for name, x in params.items()}
        return rows, params["dense"].T @ others["scale"], {**others, "dense": params["dense"] * params["bias"]}

    found = jax.jit(lambda *args: on_vectors(normalized, *args))(PARAMS, GRADS)
    wanted = jax.jit(normalized)(PARAMS, GRADS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, wanted)


def test_functions_of_other_transformations_are_called():
    """An optimizer may contain a `jax.shard_map`, a condition or a loop."""
    mesh = jax.make_mesh((1,), ("all",), devices=jax.devices()[:1])
    doubled = jax.shard_map(lambda x: 2 * x, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec())

    def changed(params):
        grown = {name: jax.lax.fori_loop(0, 3, lambda i, x: 2 * x, x) for name, x in params.items()}
        return {name: jax.lax.cond(x.sum() > 0, doubled, jnp.negative, x) + 1 for name, x in grown.items()}

    found = jax.jit(lambda params: on_vectors(changed, params))(PARAMS)
    jax.tree.map(np.testing.assert_array_equal, found, jax.jit(changed)(PARAMS))
    found = jax.jit(lambda params: on_vectors(lambda p: jax.tree.map(doubled, p), params))(PARAMS)
    jax.tree.map(np.testing.assert_array_equal, found, jax.tree.map(lambda x: 2 * x, PARAMS))


def test_packed_results_are_the_vectors():
    """Otherwise a loop whose state is vectors would copy them."""

    def step(packed):
        params = packing.unpack(packed)
        return packing.pack(on_vectors(lambda p: {name: 2 * x for name, x in p.items()}, params))

    packing = Packing.of(PARAMS)
    text = str(jax.jit(step).lower(packing.pack(PARAMS)).compile().as_text())
    assert " transpose(" not in text and " concatenate(" not in text
