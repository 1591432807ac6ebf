"""A small layer of experts, its inputs, and its results on one device or a mesh, with gradients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from engine.layers import Experts
from engine.parallel.layout import Layout, active
from engine.parallel.mesh import batch_sharding
from engine.parallel.rules import RULES, partition_spec

BATCH, TIME, FEATURES, HIDDEN, COUNT, TOP_K = 8, 12, 16, 40, 8, 2
X = jax.random.normal(jax.random.key(0), (BATCH, TIME, FEATURES))
SEED = jax.random.normal(jax.random.key(1), X.shape)  # gradient of the result
LENGTHS = np.array([12, 5, 8, 3, 12, 8, 0, 12])
WEIGHT = jnp.asarray(np.arange(TIME) < LENGTHS[:, None], jnp.float32)
FACTORS = [None, 1.0]
SPLIT: Any = {"expert": 2, "fsdp": 2, "tensor": 2}


@functools.cache
def make(factor):
    """Returns the module's graph, its parameters by name and their logical axes."""
    graph, state = nnx.split(Experts(FEATURES, HIDDEN, COUNT, TOP_K, capacity_factor=factor, rngs=nnx.Rngs(0)))
    names = {path[0]: variable.get_metadata()["logical_axes"] for path, variable in nnx.to_flat_state(state)}
    return graph, nnx.to_pure_dict(state), names


def apply(factor, params, x, weight):
    """Calls the layer with these parameters."""
    return nnx.merge(make(factor)[0], params)(x, weight)


def total(function, params, x, seed):
    """Returns a scalar that depends on all results, for gradients."""
    y, losses = function(params, x)
    return (y * seed).sum() + losses["balance"].sum() + 0.1 * losses["router_z"].sum(), (y, losses)


def shard(mesh, params):
    """Returns the parameters as the rules split them over a mesh."""
    names = make(None)[2]
    return {
        name: jax.device_put(x, NamedSharding(mesh, partition_spec(name, x.shape, names[name], RULES, mesh)))
        for name, x in params.items()
    }


class GpuLayout(Layout):
    """A layout that reports GPUs as its devices."""

    @property
    def platform(self):
        return "gpu"


@functools.cache
def program(factor, mesh, rows, kind):
    """Returns the compiled gradients and results for a number of rows, and its parameters."""
    params, inputs = make(factor)[1], (X[:rows], WEIGHT[:rows], SEED[:rows])
    if mesh is not None:
        params, inputs = shard(mesh, params), jax.device_put(inputs, batch_sharding(mesh))
    function = jax.grad(
        lambda params, x, weight, seed: total(lambda p, x: apply(factor, p, x, weight), params, x, seed),
        argnums=(0, 1),
        has_aux=True,
    )
    with active(kind(mesh=mesh)):
        return jax.jit(function).lower(params, *inputs).compile(), params


def compiled(factor, mesh=None, x=X, weight=WEIGHT, seed=SEED, kind=Layout):
    """Returns the gradients and results, and the text of the compiled program."""
    run, params = program(factor, mesh, len(x), kind)
    if mesh is not None:
        x, weight, seed = jax.device_put((x, weight, seed), batch_sharding(mesh))
    return jax.device_get(run(params, x, weight, seed)), run.as_text() or ""


@functools.cache
def one_device(factor):
    """Returns the gradients and results on one device."""
    return compiled(factor)[0]


def assert_close(a, b, tolerance=1e-5):
    """Checks that all leaves are equal within a relative and absolute tolerance."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)
