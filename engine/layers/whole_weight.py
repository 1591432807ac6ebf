"""Applies a function of rows and of a weight that is split over the devices of the rows, as with `mesh.fsdp`.

Each device gathers the weight once and computes on its own rows. In the backward pass it gathers the weight again, and
the sum of the gradient over the devices leaves on each of them the part that it stores. XLA alone would gather and sum
in each iteration of a loop, and XLA:TPU would divide each product into as many parts as there are devices.

TPUs sum a gradient by an all-to-all, which runs concurrently with other computations. Over a torus of 16 TPU v5e, XLA
computes `jax.lax.psum_scatter` as a sum in full on every device, which waits for it.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from engine.base.types import PyTree
from engine.parallel import layout
from engine.parallel.rules import split_over_data

MOST = 16
"""Most slices that one addition of `_sum` adds."""


def is_split_over_rows(x: jax.Array, weight: jax.Array, names: Sequence[str | None]) -> bool:
    """Returns whether devices that have other rows of `x` hold other parts of the weight.

    It is false within a stage of a pipeline, which leaves the weight to XLA.

    Args:
        x: rows `[batch, ...]`.
        weight: the weight as it is stored.
        names: logical axes of the weight.
    """
    return any(_split(x, weight, names)) and not layout.in_stage()


def with_whole_weights[R: (jax.Array, tuple[jax.Array, ...])](
    function: Callable[..., R],
    x: jax.Array,
    weights: Sequence[jax.Array],
    names: Sequence[Sequence[str | None]],
    *others: jax.Array,
    wide: bool = False,
) -> R:
    """Returns `function(x, *weights, *others)`, rows, where each device has the whole weights and its own rows.

    Within a stage of a pipeline the weights are left to XLA.

    Args:
        function: acts on each row alone, and is differentiable in `x` and the weights.
        x: rows `[batch, ...]`.
        weights: the weights as they are stored.
        names: logical axes of each weight.
        *others: further rows `[batch, ...]`, which have no gradient.
        wide: the function receives the weights as float32, and their gradients are summed over the devices in float32,
            unless the weights are left to XLA.
    """
    here = layout.current()
    rows = here.axes("batch", len(x))
    if not rows:
        return function(x, *(w.astype(jnp.float32) if wide else w for w in weights), *others)
    if layout.in_stage():
        return function(x, *weights, *others)
    splits = [_split(x, weight, axes) for weight, axes in zip(weights, names, strict=True)]
    elsewhere = [_split(x, weight, axes, by_rows=False) for weight, axes in zip(weights, names, strict=True)]
    of_rows, stored = PartitionSpec(rows), tuple(PartitionSpec(*(a or None for a in split)) for split in splits)

    def forward(x: jax.Array, weights: tuple[jax.Array, ...], *others: jax.Array) -> R:
        return function(x, *_whole(weights, splits, wide), *others)

    def backward(
        d_y: R, x: jax.Array, weights: tuple[jax.Array, ...], *others: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        whole = _whole(weights, splits, wide)
        _, pullback = jax.vjp(lambda x, whole: function(x, *whole, *others), x, whole)
        d_x, d_whole = pullback(d_y)
        parts = [own_part(*args, rows, here.platform) for args in zip(d_whole, splits, elsewhere, strict=True)]
        return d_x, tuple(part.astype(weight.dtype) for part, weight in zip(parts, weights, strict=True))

    on_each_device = functools.partial(jax.shard_map, mesh=here.inner_mesh, axis_names=set(rows), check_vma=False)
    arguments = (of_rows, stored, *[of_rows] * len(others))

    @jax.custom_vjp
    def applied(x: jax.Array, weights: tuple[jax.Array, ...], *others: jax.Array) -> R:
        return on_each_device(forward, in_specs=arguments, out_specs=of_rows)(x, weights, *others)

    def applied_forward(*args: PyTree) -> tuple[R, PyTree]:
        return applied(*args), args

    def applied_backward(args: PyTree, d_y: R) -> tuple[PyTree, ...]:
        mapped = on_each_device(backward, in_specs=(of_rows, *arguments), out_specs=(of_rows, stored))
        return (*mapped(d_y, *args), *[None] * len(others))

    applied.defvjp(applied_forward, applied_backward)
    return applied(x, tuple(weights), *others)


def _split(
    x: jax.Array, weight: jax.Array, names: Sequence[str | None], *, by_rows: bool = True
) -> list[tuple[str, ...]]:
    """Returns the mesh axes of the rows, or the other mesh axes, that split each dimension of the weight."""
    here = layout.current()
    rows = here.axes("batch", len(x))
    spec = here.spec(names, weight.shape)  # uses each mesh axis once, also if the rules map two dimensions to it
    if here.mesh is not None and here.gathers_over_data:
        spec = split_over_data(spec, weight.shape, here.mesh)
    return [tuple(a for a in jax.tree.leaves(entry) if (a in rows) == by_rows) for entry in spec]


def _whole(
    weights: tuple[jax.Array, ...], splits: Sequence[Sequence[tuple[str, ...]]], wide: bool
) -> tuple[jax.Array, ...]:
    """Returns the whole weights on each device, for the parts of this device; as float32 if `wide`."""
    found = []
    for weight, split in zip(weights, splits, strict=True):
        for i, axes in enumerate(split):
            weight = lax.all_gather(weight, axes, axis=i, tiled=True) if axes else weight
        found.append(weight.astype(jnp.float32) if wide else weight)
    return tuple(found)


def gathered(
    weight: jax.Array, split: Sequence[tuple[str, ...]], elsewhere: Sequence[tuple[str, ...]], platform: str
) -> jax.Array:
    """Returns the whole weight on each device, for the part of this device, within a `jax.shard_map`.

    Its gradient is the part of this device, summed over the devices that store the other parts.

    Args:
        weight: the part of this device.
        split: manual mesh axes that split each dimension.
        elsewhere: other mesh axes that split each dimension.
        platform: platform of the devices.
    """

    def whole(weight: jax.Array) -> jax.Array:
        return _whole((weight,), [split], False)[0]

    call = jax.custom_vjp(whole)
    call.defvjp(lambda weight: (whole(weight), None), lambda _, d_y: (own_part(d_y, split, elsewhere, (), platform),))
    return call(weight) if jnp.issubdtype(weight.dtype, jnp.inexact) else whole(weight)


def own_part(
    gradient: jax.Array,
    split: Sequence[tuple[str, ...]],
    elsewhere: Sequence[tuple[str, ...]],
    rows: tuple[str, ...],
    platform: str,
) -> jax.Array:
    """Returns the part of this device of the gradient of the weight, summed over the devices of the rows."""
    for i, axes in enumerate(split):
        if axes and platform == "tpu":
            gradient = exchange_and_sum(gradient, axes, i, elsewhere)
        elif axes:
            gradient = lax.psum_scatter(gradient, axes, scatter_dimension=i, tiled=True)
    replicated = tuple(a for a in rows if all(a not in axes for axes in split))
    return lax.psum(gradient, replicated) if replicated else gradient


def exchange_and_sum(
    x: jax.Array, axes: tuple[str, ...], dimension: int, elsewhere: Sequence[tuple[str, ...]] = ()
) -> jax.Array:
    """Returns what `jax.lax.psum_scatter` returns, with sums in float32 that are rounded once.

    Each device sends to every other one the part that it stores, and sums the parts that it receives.

    Args:
        x: the summand of this device.
        axes: manual mesh axes.
        dimension: the dimension that is divided over the devices.
        elsewhere: other mesh axes that split each dimension, over which XLA would gather an operand of an all-to-all.
    """

    def exchanged(parts: jax.Array) -> jax.Array:
        received = lax.all_to_all(parts, axes, dimension, dimension, tiled=True)
        return _sum(received, dimension).astype(x.dtype)

    count = lax.axis_size(axes)
    parts = x.reshape(*x.shape[:dimension], count, x.shape[dimension] // count, *x.shape[dimension + 1 :])
    if not any(elsewhere):
        return exchanged(parts)
    entries = [others or None for others in elsewhere]
    return jax.shard_map(
        exchanged,
        mesh=jax.sharding.get_abstract_mesh(),
        axis_names={axis for others in elsewhere for axis in others},
        in_specs=PartitionSpec(*entries[:dimension], None, *entries[dimension:]),
        out_specs=PartitionSpec(*entries),
        check_vma=False,
    )(parts)


def _sum(x: jax.Array, dimension: int) -> jax.Array:
    """Returns the sum over a dimension in float32, as additions of at most MOST slices.

    XLA:TPU computes `x.sum(dimension)` in the dtype of `x`, in five times as many cycles. It would convert the whole
    array first if that came before the slices.
    """
    while (size := x.shape[dimension]) > 1:
        count = next((n for n in range(min(size, MOST), 1, -1) if size % n == 0), size)
        x = x.reshape(*x.shape[:dimension], count, size // count, *x.shape[dimension + 1 :])
        slices = (lax.index_in_dim(x, i, dimension, keepdims=False).astype(jnp.float32) for i in range(count))
        x = functools.reduce(jnp.add, slices)
    return lax.squeeze(x, [dimension])
