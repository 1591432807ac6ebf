"""Gathers the kernels of convolutions over `fsdp` before a layer uses them.

A kernel without logical axes is split over the devices that also split the rows (`parallel/rules.py`). Left alone, XLA
may split the channels of a convolution and gather the rows of all devices, which are much larger than the kernel.
"""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from engine.parallel import layout
from engine.parallel.rules import partition_spec
from engine.training.arrays import Arrays
from engine.training.model import Model


def with_whole_kernels(model: Model, params: Arrays) -> Arrays:
    """Returns parameters with kernels of convolutions whole on each device; the gradients of these are split again.

    Args:
        model: the model.
        params: path -> parameter, as a traced array.
    """
    here = layout.current()
    if here.mesh is None or here.size("fsdp") == 1:
        return params
    found = dict(params)
    for path in sorted(model.convolutions):  # in any other order, processes would compile different programs
        found[path] = _whole(params[path], partition_spec(path, params[path].shape, None, here.rules, here.mesh))
    return found


def _whole(x: jax.Array, own: PartitionSpec) -> jax.Array:
    mesh = layout.current().inner_mesh

    def constrained(x: jax.Array, spec: PartitionSpec) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return constrained(x, PartitionSpec())
    call = jax.custom_vjp(lambda x: constrained(x, PartitionSpec()))
    call.defvjp(lambda x: (call(x), None), lambda _, d_x: (constrained(d_x, own),))
    return call(x)
