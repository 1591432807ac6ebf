"""Applies a function of rows and of a weight that is split over the devices of the rows, as with `mesh.fsdp`.

Each device gathers the weight once and computes on its own rows. In the backward pass it gathers the weight again, and
the sum of the gradient over the devices leaves on each of them the part that it stores. XLA alone would gather and sum
in each iteration of a loop.

TPUs leave the weight to XLA. Over a torus of 16 TPU v5e, XLA sums such a gradient in full on every device, which waits
for it. The rings that it makes of a product and a collective run concurrently.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from engine.parallel import layout
from engine.types import PyTree


def with_whole_weight(
    function: Callable[..., jax.Array],
    x: jax.Array,
    weight: jax.Array,
    names: Sequence[str | None],
    *others: jax.Array,
    wide: bool = False,
) -> jax.Array:
    """Returns `function(x, weight, *others)`, an array of rows, where each device has the whole weight and its rows.

    On TPUs and within a `jax.shard_map` the weight is left to XLA.

    Args:
        function: acts on each row alone. Its result is differentiable in `x` and `weight`.
        x: rows `[batch, ...]`.
        weight: the weight as it is stored.
        names: logical axes of the weight.
        *others: further rows `[batch, ...]`, which have no gradient.
        wide: the function receives the weight as float32, and its gradient is summed over the devices in float32,
            unless the weight is left to XLA.
    """
    here = layout.current()
    rows = here.axes("batch", len(x))
    if not rows:
        return function(x, weight.astype(jnp.float32) if wide else weight, *others)
    if here.platform == "tpu" or jax.sharding.get_abstract_mesh().manual_axes:
        return function(x, weight, *others)
    # `spec` uses each mesh axis once, also if the rules map two dimensions to it.
    split = [tuple(a for a in jax.tree.leaves(entry) if a in rows) for entry in here.spec(names, weight.shape)]
    replicated = tuple(a for a in rows if all(a not in axes for axes in split))
    weight_spec, rows_spec = PartitionSpec(*(axes or None for axes in split)), PartitionSpec(rows)

    def whole(weight: jax.Array) -> jax.Array:
        for i, axes in enumerate(split):
            weight = lax.all_gather(weight, axes, axis=i, tiled=True) if axes else weight
        return weight.astype(jnp.float32) if wide else weight

    def own_part(gradient: jax.Array) -> jax.Array:
        for i, axes in enumerate(split):
            gradient = lax.psum_scatter(gradient, axes, scatter_dimension=i, tiled=True) if axes else gradient
        gradient = lax.psum(gradient, replicated) if replicated else gradient
        return gradient.astype(weight.dtype)

    def forward(x: jax.Array, weight: jax.Array, *others: jax.Array) -> jax.Array:
        return function(x, whole(weight), *others)

    def backward(d_y: jax.Array, x: jax.Array, weight: jax.Array, *others: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, pullback = jax.vjp(lambda x, weight: function(x, weight, *others), x, whole(weight))
        d_x, d_weight = pullback(d_y)
        return d_x, own_part(d_weight)

    def on_each_device(call: Callable, *args: jax.Array, in_specs: PyTree, out_specs: PyTree) -> PyTree:
        mapped = jax.shard_map(
            call, mesh=here.inner_mesh, axis_names=set(rows), in_specs=in_specs, out_specs=out_specs, check_vma=False
        )
        return mapped(*args)

    arguments = (rows_spec, weight_spec, *[rows_spec] * len(others))

    @jax.custom_vjp
    def applied(x: jax.Array, weight: jax.Array, *others: jax.Array) -> jax.Array:
        return on_each_device(forward, x, weight, *others, in_specs=arguments, out_specs=rows_spec)

    def applied_forward(*args: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        return applied(*args), args

    def applied_backward(args: tuple[jax.Array, ...], d_y: jax.Array) -> tuple[jax.Array | None, ...]:
        specs = (rows_spec, *arguments)
        gradients = on_each_device(backward, d_y, *args, in_specs=specs, out_specs=(rows_spec, weight_spec))
        return (*gradients, *[None] * len(others))

    applied.defvjp(applied_forward, applied_backward)
    return applied(x, weight, *others)
