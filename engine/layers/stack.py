"""A stack of layers of one kind, whose parameters have a leading dimension for the layers.

The layers are applied in sequence, or over the stages of a pipeline (`pipeline.py`). The *carry* passes from one layer
to the next; *shared* inputs go to every layer.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from engine.base.errors import TaskError
from engine.base.types import PyTree
from engine.layers.dropout import fold_in
from engine.layers.pipeline import AXIS, pipeline
from engine.layers.platforms.control_flow import layers_per_iteration, unrolls_layers
from engine.layers.rematerialization import CARRY, remat
from engine.parallel import schedule
from engine.parallel.layout import current
from engine.parallel.rules import STACKED


class Stack(nnx.Module):
    """Applies `count` layers in sequence, over the stages of a pipeline if the mesh has one.

    `layers` holds the parameters of all layers, such as "decoder/layers/attention/q/kernel" for a stack `decoder`.
    Their shape is `[count, ...]`, and the logical axis "layers" precedes those of the layer. Over a pipeline with
    repeats the shape is `[repeats, count / repeats, ...]` with the axes ("repeats", "layers"), in the same order.

    Args:
        make: function of an nnx.Rngs that returns one layer, an nnx.Module. A layer is called as
            `layer(carry, *shared, rng)` and returns a carry of the same structure, shapes and dtypes.
        count: number of layers.
        rngs: random keys for the initial values; those of layer i depend only on the seed and i.
        unroll: unroll the layers instead of scanning over them, which takes longer to compile. None unrolls if that
            makes a step faster (`layers/platforms/control_flow.py`).

    Raises:
        TaskError: a layer holds variables other than nnx.Param and random state, or another stack.
        ShardingError: the layers do not divide over stages and repeats.
    """

    def __init__(
        self, make: Callable[[nnx.Rngs], nnx.Module], count: int, *, rngs: nnx.Rngs, unroll: bool | None = None
    ):
        stages = current().size(AXIS)
        self.count, self.unroll = count, unroll
        self.repeats = current().repeats if stages > 1 else 1
        schedule.check_layers(count, stages, self.repeats)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rngs.params(), jnp.arange(count))
        graphs: list[nnx.GraphDef] = []

        def values(key: jax.Array) -> tuple[PyTree, PyTree]:
            graph, params, rest = nnx.split(make(nnx.Rngs(key)), nnx.Param, ...)
            graphs.append(graph)
            return params, rest

        with nnx.use_eager_sharding(False):
            params, rest = jax.jit(jax.vmap(values))(keys)
            self.layers = nnx.merge(graphs[0], params, jax.tree.map(lambda x: x[0], rest))
        leading = STACKED if self.repeats > 1 else STACKED[1:]
        for variable in _params(self.layers):
            value = variable.get_value()
            variable.set_metadata(_stacked_metadata(variable, leading))
            variable.set_value(value.reshape(self.repeats, -1, *value.shape[1:]) if self.repeats > 1 else value)

    def __call__(self, carry: PyTree, *shared: PyTree, rng: jax.Array | None = None) -> PyTree:
        """Returns the carry after the last layer.

        Args:
            carry: pytree of arrays `[batch, ...]`.
            *shared: pytrees of arrays `[batch, ...]`, or None.
            rng: keys `[batch]`, folded with the index of each layer; None if the layers draw nothing.

        Raises:
            TaskError: a layer returns a carry that differs from its input in structure, shapes or dtypes.
            ShardingError: over a pipeline, the batch does not divide over microbatches and devices.
        """
        graph, params, rng_state, rest = nnx.split(self.layers, nnx.Param, nnx.RngState, ...)
        values, tree = jax.tree.flatten(params)

        def apply_layer(
            values: PyTree, index: jax.Array, carry: PyTree, shared: PyTree, rng: jax.Array | None
        ) -> PyTree:
            layer = nnx.merge(graph, jax.tree.unflatten(tree, values), _of_layer(rng_state, index), rest)
            return _checked(layer, carry, layer(carry, *shared, fold_in(rng, index)))

        unroll = unrolls_layers(current().platform, self.count) if self.unroll is None else self.unroll
        apply_layer = remat(apply_layer, in_scan=not unroll)

        def apply(
            values: PyTree, first: int | jax.Array, carry: PyTree, shared: PyTree, rng: jax.Array | None
        ) -> PyTree:
            def step(carry: PyTree, layer: tuple[PyTree, jax.Array]) -> PyTree:
                return apply_layer(*layer, checkpoint_name(carry, CARRY), shared, rng)

            here = values[0].shape[0]
            together = 1 if unroll else layers_per_iteration(current().platform, here, _gathered_from())
            return _scan(step, carry, (values, first + jnp.arange(here)), together, unroll=unroll)

        if current().use(AXIS) == 1:
            values = [x.reshape(self.count, *x.shape[2:]) for x in values] if self.repeats > 1 else values
            return apply(values, 0, carry, shared, rng)
        if jax.tree.leaves(rng_state):
            raise TaskError(
                f"Stack of {type(self.layers).__name__}: its layers hold random state, which would be the same for all "
                "microbatches of a pipeline. Use engine.layers.Dropout, which draws per example, or mesh.pipeline=1."
            )
        leading = STACKED[:0] if self.repeats > 1 else STACKED[:1]
        names = [(*leading, *variable.get_metadata("logical_axes")) for variable in _variables(params)]
        values = values if self.repeats > 1 else [x[None] for x in values]
        return pipeline(apply, values, names, carry, shared, rng)


def _scan(
    step: Callable[[PyTree, PyTree], PyTree], carry: PyTree, layers: PyTree, together: int, *, unroll: bool
) -> PyTree:
    """Returns the carry after all layers.

    The option `unroll` of `jax.lax.scan` would join what the layers of an iteration keep for the backward pass into one
    array: XLA would copy each kept value before it writes it into the array of the loop.

    Args:
        step: returns the carry after a layer.
        carry: the first carry.
        layers: inputs of the layers, arrays `[layers, ...]`.
        together: layers that an iteration of the loop computes; a divisor of their number.
        unroll: whether to compute the layers without a loop.
    """

    def steps(carry: PyTree, layers: list[PyTree]) -> tuple[PyTree, None]:
        for layer in layers:
            carry = step(carry, layer)
        return carry, None

    leaves, tree = jax.tree.flatten(layers)
    split = [_every(x, together) for x in leaves]
    return jax.lax.scan(steps, carry, [tree.unflatten(x) for x in zip(*split, strict=True)], unroll=unroll)[0]


def _every(x: jax.Array, count: int) -> list[jax.Array]:
    """Returns `x[i::count]` for each i below `count`. Its gradient joins the parts in one pass."""
    if count == 1:
        return [x]
    parts = jax.lax.split(x.reshape(-1, count, *x.shape[1:]), [1] * count, axis=1)
    return [part.reshape(-1, *x.shape[1:]) for part in parts]


def _gathered_from() -> int:
    """Returns how many devices hold a part of a weight that `Dense` gathers on TPUs."""
    here = current()
    over_data = here.size("data") if here.gathers_over_data else 1
    return here.size("fsdp") * over_data if here.size("tensor") == 1 else 1


def _variables(state: PyTree) -> list[nnx.Variable]:
    """Returns the variables of an NNX state, in the order of its arrays."""
    return jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, nnx.Variable))


def _params(layer: nnx.Module) -> list[nnx.Variable]:
    """Returns the parameters of the layers. Raises TaskError for variables other than parameters and random state."""
    found = []
    for path, variable in nnx.iter_graph(layer):
        if isinstance(variable, nnx.Param):
            found.append(variable)
        elif isinstance(variable, nnx.Variable) and not isinstance(variable, nnx.RngState):
            where, kind = "/".join(map(str, path)), type(variable).__name__
            raise TaskError(
                f"Stack of {type(layer).__name__}: {where} is a {kind}. Layers of a stack may hold only parameters "
                "(nnx.Param): normalise with engine.layers.RMSNorm or nnx.LayerNorm, and create constants in __call__."
            )
    return found


def _stacked_metadata(variable: nnx.Variable, leading: tuple[str, ...]) -> dict[str, object]:
    """Returns the metadata of a parameter, with the logical axes of the stack before those of the layer."""
    metadata = variable.get_metadata()
    own = metadata.pop("out_sharding", None)
    own = tuple(metadata.pop("logical_axes", own) or ())
    if set(own) & set(STACKED):
        raise TaskError(
            f"Stack: a layer has a parameter with the logical axes {own}, which the stack itself adds. Make one stack "
            "of all layers, or put the inner layers in an nnx.List."
        )
    return {**metadata, "logical_axes": (*leading, *own)}


def _of_layer(rng_state: PyTree, index: jax.Array) -> PyTree:
    """Returns the random state of one layer: keys are folded with its index."""

    def leaf(x: jax.Array) -> jax.Array:
        return jax.random.fold_in(x, index) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    return jax.tree.map(leaf, rng_state)


def _checked(layer: nnx.Module, before: PyTree, after: PyTree) -> PyTree:
    """Returns the carry after a layer. Raises TaskError if its structure, shapes or dtypes changed."""
    found, given = (jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree) for tree in (after, before))
    if found != given:
        raise TaskError(
            f"Stack: {type(layer).__name__} received {given} and returned {found}. A layer must return a carry of the "
            "same structure, shapes and dtypes (use x.astype(...) if it computes in another dtype)."
        )
    return after
