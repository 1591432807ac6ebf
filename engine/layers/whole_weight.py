"""Applies a function of rows and of a weight that is split over the devices of the rows, as with `mesh.fsdp`.

Each device gathers the weight once and computes on its own rows. In the backward pass it gathers the weight again, and
the sum of the gradient over the devices leaves on each of them the part that it stores. XLA alone would gather and sum
in each iteration of a loop, and XLA:TPU would divide each product into as many parts as there are devices.

TPUs sum a gradient in a ring of this module. Over a torus of 16 TPU v5e, XLA computes `jax.lax.psum_scatter` as a sum
in full on every device, which waits for it. The steps of the ring run concurrently with other computations.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from engine.parallel import layout

LONGEST = 16
"""Most devices of one ring that sums a gradient."""


def is_split_over_rows(x: jax.Array, weight: jax.Array, names: Sequence[str | None]) -> bool:
    """Returns whether devices that have other rows of `x` hold other parts of the weight.

    It is false within a `jax.shard_map`, which leaves the weight to XLA.

    Args:
        x: rows `[batch, ...]`.
        weight: the weight as it is stored.
        names: logical axes of the weight.
    """
    return any(_split(x, weight, names)) and not jax.sharding.get_abstract_mesh().manual_axes


def with_whole_weight(
    function: Callable[..., jax.Array],
    x: jax.Array,
    weight: jax.Array,
    names: Sequence[str | None],
    *others: jax.Array,
    wide: bool = False,
) -> jax.Array:
    """Returns `function(x, weight, *others)`, an array of rows, where each device has the whole weight and its rows.

    Within a `jax.shard_map` the weight is left to XLA.

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
    if jax.sharding.get_abstract_mesh().manual_axes:
        return function(x, weight, *others)
    split = _split(x, weight, names)
    weight_spec, rows_spec = PartitionSpec(*(axes or None for axes in split)), PartitionSpec(rows)

    def whole(weight: jax.Array) -> jax.Array:
        weight = _gathered(weight, split)
        return weight.astype(jnp.float32) if wide else weight

    def forward(x: jax.Array, weight: jax.Array, *others: jax.Array) -> jax.Array:
        return function(x, whole(weight), *others)

    def backward(d_y: jax.Array, x: jax.Array, weight: jax.Array, *others: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, pullback = jax.vjp(lambda x, weight: function(x, weight, *others), x, whole(weight))
        d_x, d_weight = pullback(d_y)
        return d_x, _own_part(d_weight, split, rows, here.platform).astype(weight.dtype)

    on_each_device = functools.partial(jax.shard_map, mesh=here.inner_mesh, axis_names=set(rows), check_vma=False)
    arguments = (rows_spec, weight_spec, *[rows_spec] * len(others))

    @jax.custom_vjp
    def applied(x: jax.Array, weight: jax.Array, *others: jax.Array) -> jax.Array:
        return on_each_device(forward, in_specs=arguments, out_specs=rows_spec)(x, weight, *others)

    def applied_forward(*args: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        return applied(*args), args

    def applied_backward(args: tuple[jax.Array, ...], d_y: jax.Array) -> tuple[jax.Array | None, ...]:
        specs = (rows_spec, *arguments)
        mapped = on_each_device(backward, in_specs=specs, out_specs=(rows_spec, weight_spec))
        return (*mapped(d_y, *args), *[None] * len(others))

    applied.defvjp(applied_forward, applied_backward)
    return applied(x, weight, *others)


def _split(x: jax.Array, weight: jax.Array, names: Sequence[str | None]) -> list[tuple[str, ...]]:
    """Returns the mesh axes of the rows that split each dimension of the weight."""
    here = layout.current()
    rows = here.axes("batch", len(x))
    # `spec` uses each mesh axis once, also if the rules map two dimensions to it.
    return [tuple(a for a in jax.tree.leaves(entry) if a in rows) for entry in here.spec(names, weight.shape)]


def _gathered(weight: jax.Array, split: list[tuple[str, ...]]) -> jax.Array:
    """Returns the whole weight on each device, for the part of this device."""
    for i, axes in enumerate(split):
        weight = lax.all_gather(weight, axes, axis=i, tiled=True) if axes else weight
    return weight


def _own_part(gradient: jax.Array, split: list[tuple[str, ...]], rows: tuple[str, ...], platform: str) -> jax.Array:
    """Returns the part of this device of the gradient of the weight, summed over the devices of the rows."""
    reduce_scatter = ring_reduce_scatter if platform == "tpu" else _reduce_scatter
    for i, axes in enumerate(split):
        gradient = reduce_scatter(gradient, axes, i) if axes else gradient
    replicated = tuple(a for a in rows if all(a not in axes for axes in split))
    return lax.psum(gradient, replicated) if replicated else gradient


def _reduce_scatter(x: jax.Array, axes: tuple[str, ...], dimension: int) -> jax.Array:
    return lax.psum_scatter(x, axes, scatter_dimension=dimension, tiled=True)


def ring_reduce_scatter(x: jax.Array, axes: tuple[str, ...], dimension: int, longest: int = LONGEST) -> jax.Array:
    """Returns what `jax.lax.psum_scatter` returns. Partial sums go from each device to the next, and back to their own.

    More than `longest` devices form nested rings: 128 devices sum over 8 rings of 16, and then over 16 rings of 8. A
    device sends as many bytes as in one ring, in 22 steps instead of 127. Each step is an operation of the program, and
    those of one ring of 128 took XLA:TPU more than four minutes to compile.

    Args:
        x: the summand of this device.
        axes: manual mesh axes.
        dimension: the dimension that is divided over the devices.
        longest: most devices of a ring, if a divisor allows.
    """
    stride = lax.axis_size(axes)
    while stride > 1:
        count = next((n for n in range(min(longest, stride), 1, -1) if stride % n == 0), stride)
        stride //= count
        x = _ring(x, axes, dimension, count, stride)
    return x


def _ring(x: jax.Array, axes: tuple[str, ...], dimension: int, count: int, stride: int) -> jax.Array:
    """Returns the part of a device of the sum over a ring of `count` devices, whose numbers differ by `stride`."""
    me = lax.axis_index(axes) // stride % count
    size = x.shape[dimension] // count
    places = [(i, i // stride % count) for i in range(lax.axis_size(axes))]
    following = [(i, i + ((place + 1) % count - place) * stride) for i, place in places]

    def part(hop: int) -> jax.Array:
        """Returns the summand of this device for the part whose sum is on this device after `hop` steps."""
        return lax.dynamic_slice_in_dim(x, (me - 1 - hop) % count * size, size, dimension)

    total = part(0)
    for hop in range(1, count):
        total = lax.ppermute(total, axes, following) + part(hop)
    return total
