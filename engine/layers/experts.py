"""A mixture of experts, on one device or with an all-to-all over the mesh axis `expert`.

With a *capacity*, an expert has so many slots for each sequence. Choices without a slot are dropped: later ranks first,
then later positions. This depends on the sequence alone, not on the mesh, the batch or accumulation. A sequence that is
split over `context` is gathered, and each device computes a part of the slots. *Dropless* computes every choice and
keeps the sequence split, but static shapes then require space for every token on every device of `expert`, the traffic
of an all-gather. Use a capacity if memory matters.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from engine.base.errors import ShardingError, TaskError
from engine.base.types import PyTree
from engine.layers.gated import swiglu
from engine.layers.platforms.grouped_products import blocks_for
from engine.layers.quantization import grouped_matmul, matmul
from engine.layers.reference import convoy_keeps_rows
from engine.layers.rematerialization import recomputed
from engine.layers.routing import Routes, RowAssignment, assign_rows, group_sizes, route
from engine.parallel import layout
from engine.parallel.rules import axes_of

SLOTS = ("batch", "sequence", None)  # logical axes of the last three of [experts, batch, slots, features]


class Experts(nnx.Module):
    """A mixture of SwiGLU experts (Shazeer et al. 2017; Fedus et al. 2022).

    Each token goes to the `top_k` experts with the largest probabilities. The result is the sum of their outputs
    weighted by these probabilities, which are normalised to sum 1 (except for `top_k` 1, as in Fedus et al.). The
    router always computes in float32.

    Args:
        features: size of the last dimension of input and result.
        hidden: hidden size of an expert.
        count: number of experts.
        top_k: experts per token.
        capacity_factor: an expert has ceil(top_k * time / count * capacity_factor) slots per sequence, at most `time`.
            None is dropless.
        rngs: random keys for the initial values (LeCun et al. 1998).

    Raises:
        TaskError: `top_k` is above `count`, or the capacity is not positive.
    """

    def __init__(
        self, features: int, hidden: int, count: int, top_k: int, *, capacity_factor: float | None, rngs: nnx.Rngs
    ):
        if not 1 <= top_k <= count:
            raise TaskError(f"Experts: top_k = {top_k} with count = {count} experts. Allowed: 1 to {count}.")
        if capacity_factor is not None and capacity_factor <= 0:
            raise TaskError(f"Experts: capacity_factor = {capacity_factor}. Allowed: above 0, or None for dropless.")
        self.count, self.top_k, self.capacity_factor = count, top_k, capacity_factor
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", batch_axis=0)

        def kernels(size_in: int, size_out: int, *axes: str) -> nnx.Param:
            return nnx.Param(
                init(rngs.params(), (count, size_in, size_out)), logical_axes=("expert", *axes), role="matrix"
            )

        router = nnx.initializers.lecun_normal()(rngs.params(), (features, count))
        self.router = nnx.Param(router, logical_axes=("embed", None), role="matrix")
        self.gate = kernels(features, hidden, "embed", "mlp")
        self.up = kernels(features, hidden, "embed", "mlp")
        self.down = kernels(hidden, features, "mlp", "embed")

    def __call__(self, x: jax.Array, weight: jax.Array | None = None) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the result `[batch, time, features]` and weighted sums over each sequence, `[batch]` float32.

        The sums are "balance" and "router_z", the losses of `routing.route`, and "dropped", the fraction of a token's
        choices without a slot. Divided by the sum of the weights, each is a mean over tokens.

        Args:
            x: `[batch, time, features]`.
            weight: `[batch, time]`, the weight of each token. A token of weight 0 (padding) uses no slot, is ignored,
                and its result is 0. None weights all tokens by 1.

        Raises:
            ShardingError: the experts do not divide over their mesh axis.
        """
        here = layout.current()
        here.use("expert")
        axes = here.axes("expert")
        devices = math.prod(here.size(axis) for axis in axes)
        if self.count % devices:
            text = " x ".join(f"{axis}={here.size(axis)}" for axis in axes)
            raise ShardingError(
                f"Experts: count = {self.count} is not divisible by mesh axis {text}. Use a multiple of {devices} "
                f"({-(-self.count // devices) * devices}), or {math.gcd(self.count, devices)} devices on that axis."
            )
        weight = jnp.ones(x.shape[:2]) if weight is None else weight.astype(jnp.float32)
        x = jnp.where(weight[..., None] != 0, x, 0)
        routes = route(x, self.router.get_value(), self.top_k, weight)
        kernels = tuple(kernel.get_value().astype(x.dtype) for kernel in (self.gate, self.up, self.down))
        if here.counts_flops:  # empty slots and dropped choices are not model FLOPs
            y, dropped = convoy_keeps_rows(_dropless, x, routes, kernels), jnp.zeros(x.shape[0])
        elif self.capacity_factor is None:
            y, dropped = _dropless(x, routes, kernels), jnp.zeros(x.shape[0])
        else:
            slots = math.ceil(self.top_k * x.shape[1] / self.count * self.capacity_factor)
            y, unassigned = _with_capacity(x, routes, kernels, min(slots, x.shape[1]))
            dropped = (weight * unassigned).sum(1) / self.top_k
        return y, {**routes.losses, "dropped": dropped}


def _with_capacity(
    x: jax.Array, routes: Routes, kernels: tuple[jax.Array, ...], capacity: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the result and the number of dropped choices of each token `[batch, time]`."""
    here = layout.current()
    count, whole = kernels[0].shape[0], ("batch", None, None)
    x, experts = here.constrain(x, *whole), here.constrain(routes.experts, *whole)
    parts = here.size("context")
    slots = -(-capacity // parts) * parts  # extra slots stay empty

    def plan(experts: jax.Array) -> RowAssignment:
        sizes, starts = group_sizes(experts, count), jnp.arange(count) * slots
        return assign_rows(experts, sizes, starts, jnp.full(count, capacity), count * slots)

    rows = jax.vmap(plan)(experts)
    filled = jax.vmap(RowAssignment.gather)(rows, x).reshape(x.shape[0], count, slots, -1).swapaxes(0, 1)
    y = _exchange(_swiglu(_exchange(filled, True), kernels), False).swapaxes(0, 1)
    y = here.constrain(y.reshape(x.shape[0], count * slots, -1), *whole)
    y = jax.vmap(RowAssignment.combine)(rows, y, routes.weights)
    unassigned = (rows.row == count * slots).reshape(x.shape[0], -1, x.shape[1]).swapaxes(1, 2) & (experts < count)
    return here.constrain(y, "batch", "sequence", None), unassigned.sum(-1)


def _swiglu(x: jax.Array, kernels: tuple[jax.Array, ...]) -> jax.Array:
    """Returns the results of the experts for their slots; both are `[experts, batch, slots, features]`.

    Of kernels that are split over the rows, and of activations in half precision, the backward pass keeps only what no
    device can compute again without a product: it gathers the kernels once more, and repeats the activation.
    """
    here, product = layout.current(), jax.vmap(matmul)
    axes = (("expert", None, "mlp"), ("expert", None, "mlp"), ("expert", "mlp", None))
    is_gathered = here.spec(("expert", "embed", "mlp"), kernels[0].shape) != here.spec(axes[0], kernels[0].shape)
    if not is_gathered and x.dtype.itemsize >= 4:
        gate, up, down = (here.constrain(kernel, *names) for kernel, names in zip(kernels, axes, strict=True))
        hidden = jax.nn.silu(product(x, gate)) * product(x, up)
        return product(here.constrain(hidden, "expert", *SLOTS[:2], "mlp"), down)

    def first(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return product(x, here.constrain(kernel, *axes[0]))

    def last(gate: jax.Array, up: jax.Array, kernel: jax.Array) -> jax.Array:
        hidden = here.constrain(swiglu(gate, up), "expert", *SLOTS[:2], "mlp")
        return product(hidden, here.constrain(kernel, *axes[2]))

    gate, up = (recomputed(first, x, kernel) for kernel in kernels[:2])
    return recomputed(last, gate, up, kernels[2])


def _exchange(x: jax.Array, to_experts: bool) -> jax.Array:
    """Changes the sharding of `[experts, batch, slots, features]` from rows to experts, or back."""
    here = layout.current()
    by_row, by_expert = (here.spec((name, *SLOTS), x.shape) for name in (None, "expert"))
    source, target = (by_row, by_expert) if to_experts else (by_expert, by_row)
    if by_expert[0] != "expert" or "expert" not in axes_of(by_row[1]):
        return here.constrain(x, "expert" if to_experts else None, *SLOTS)  # XLA chooses the collective
    split, concat = (0, 1) if to_experts else (1, 0)

    def local(x: jax.Array) -> jax.Array:
        return jax.lax.all_to_all(x, "expert", split, concat, tiled=True)

    return _mapped(here.inner_mesh, local, source, target)(x)


@dataclasses.dataclass(frozen=True)
class _Split:
    """How dropless computation is split over the mesh."""

    platform: str
    tokens: PartitionSpec  # spec of an array [batch, time, features]
    exchanged: int  # devices of the axis `expert` that exchange tokens; 1 for none
    hidden: tuple[str, ...]  # mesh axes that split the hidden size of an expert

    @property
    def axes(self) -> tuple[str, ...]:
        """All mesh axes of the split."""
        return tuple(axis for entry in self.tokens for axis in axes_of(entry)) + self.hidden

    @property
    def kernels(self) -> tuple[PartitionSpec, ...]:
        """PartitionSpecs of gate, up and down."""
        expert = "expert" if self.exchanged > 1 else None
        wide = PartitionSpec(expert, None, self.hidden or None)
        return wide, wide, PartitionSpec(expert, self.hidden or None, None)


def _dropless(x: jax.Array, routes: Routes, kernels: tuple[jax.Array, ...]) -> jax.Array:
    """Returns the result without dropped choices. Each device sorts its own tokens by expert."""
    here = layout.current()
    tokens = here.spec(("batch", "sequence", None), x.shape)
    taken = {axis for entry in tokens for axis in axes_of(entry)}
    exchanged = here.axes("expert", kernels[0].shape[0]) == ("expert",) and "expert" in axes_of(tokens[0])
    hidden = tuple(axis for axis in here.axes("mlp", kernels[0].shape[2]) if axis not in taken)
    split = _Split(here.platform, tokens, here.size("expert") if exchanged else 1, hidden)
    args = (x, routes.experts, routes.weights, kernels)
    if not split.axes:
        return _local(split, *args)
    specs = (tokens, tokens, tokens, split.kernels)
    return _mapped(here.inner_mesh, functools.partial(_local, split), specs, tokens)(*args)


def _local(
    split: _Split, x: jax.Array, experts: jax.Array, weights: jax.Array, kernels: tuple[jax.Array, ...]
) -> jax.Array:
    """Computes `_dropless` on one device, for its tokens `[batch, time, features]` and its part of the kernels."""
    shape, count, top_k = x.shape, kernels[0].shape[0], weights.shape[-1]
    x, experts, weights = (a.reshape(-1, a.shape[-1]) for a in (x, experts, weights))
    if split.exchanged > 1:
        x, experts, weights = (_send(jnp.stack([a] * split.exchanged)) for a in (x, experts, weights))
        experts = experts - count * jax.lax.axis_index("expert")
        experts = jnp.where((experts >= 0) & (experts < count), experts, count)
    blocks = blocks_for(split.platform, len(x) * top_k // split.exchanged, count)
    block = blocks.block
    sizes = group_sizes(experts, count)
    capacity = -(-sizes // block) * block
    max_rows = len(x) * min(top_k, count) + count * (block - 1)
    rows = assign_rows(experts, sizes, jnp.cumsum(capacity) - capacity, capacity, -(-max_rows // block) * block)
    filled, capacity = (_vary(a, split.hidden) for a in (rows.gather(x), capacity))
    by_tokens = tuple(axis for axis in split.axes if axis not in split.hidden and not _in(axis, split.kernels))
    gate, up, down = (_vary(kernel, by_tokens) for kernel in kernels)
    hidden = jax.nn.silu(grouped_matmul(filled, gate, capacity, blocks)) * grouped_matmul(filled, up, capacity, blocks)
    y = rows.combine(grouped_matmul(hidden, down, capacity, blocks), weights)
    if split.hidden:
        y = jax.lax.psum(y.astype(jnp.float32), split.hidden).astype(y.dtype)
    if split.exchanged > 1:
        y = _send(y.reshape(split.exchanged, -1, y.shape[-1])).reshape(split.exchanged, -1, y.shape[-1]).sum(0)
    return y.reshape(shape)


def _send(x: jax.Array) -> jax.Array:
    """Sends part i of `[devices, tokens, ...]` to device i of `expert`; returns the received parts `[tokens, ...]`."""
    received = jax.lax.all_to_all(x, "expert", 0, 0, tiled=True)
    return received.reshape(-1, *x.shape[2:])


def _mapped[**P](
    mesh: Mesh | AbstractMesh | None, function: Callable[P, jax.Array], in_specs: PyTree, out_specs: PartitionSpec
) -> Callable[P, jax.Array]:
    """Returns a function under `jax.shard_map` over the mesh axes that its specs name."""
    leaves = jax.tree.leaves((in_specs, out_specs), is_leaf=lambda x: isinstance(x, PartitionSpec))
    axes = {axis for spec in leaves for entry in spec for axis in axes_of(entry)}
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names=axes)


def _vary(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Returns `x`, which is replicated over `axes`, marked as varying over them (`jax.lax.pcast`).

    Its gradient is summed over `axes` in float32, since XLA:CPU cannot sum half precision here.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype
    return jax.lax.pcast(x.astype(wide), axes, to="varying").astype(x.dtype) if axes else x


def _in(axis: str, specs: tuple[PartitionSpec, ...]) -> bool:
    return any(axis in axes_of(entry) for spec in specs for entry in spec)
