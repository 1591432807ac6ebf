"""A stack of layers of one kind: one set of parameters with a dimension for the layers.

Owns: how the parameters are made, named and stored, and one layer after the other on one device. Does not own: the
stages of a pipeline (`pipeline.py`), or what is computed again (`remat.py`).

Terms. *Carry*: what a layer takes from the one before and gives to the next. *Shared*: what all layers are given
alike. *Repeat*: one of `sharding.repeats` groups of consecutive layers, which go over all stages of a pipeline one
after the other.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from engine.config.errors import TaskError
from engine.layers.dropout import fold_in
from engine.layers.pipeline import AXIS, pipeline
from engine.layers.remat import CARRY, remat
from engine.parallel import schedule
from engine.parallel.layout import current
from engine.parallel.rules import STACKED
from engine.tuning.control_flow import unrolls_layers


class Stack(nnx.Module):
    """`count` layers, one after the other; over the stages of a pipeline where the mesh has one.

    The parameters of all layers are kept together, in `layers`: "decoder/layers/attention/q/kernel" for a model whose
    stack is `decoder`. They have the shape `[count, ...]` and the logical axis "layers" before those of the layer; over
    a pipeline with repeats `[repeats, count / repeats, ...]` and ("repeats", "layers"), in the same order.

    Args:
        make: returns one layer, an nnx.Module, for an nnx.Rngs. A layer is called as `layer(carry, *shared, rng)` and
            returns the carry, of the structure, shapes and dtypes that it came with.
        count: of layers.
        rngs: for the initial values; those of layer i depend on the seed and on i only.
        unroll: write the layers out instead of scanning over them: longer to compile, and faster on a CPU. None does
            so on a CPU for up to UNROLLED layers.

    Raises:
        TaskError: a layer that holds variables other than nnx.Param and random state, or a stack of its own.
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
        graphs = []

        def values(key: jax.Array) -> Any:
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

    def __call__(self, carry: Any, *shared: Any, rng: jax.Array | None = None) -> Any:
        """Returns the carry after the last layer.

        Args:
            carry: pytree of arrays `[batch, ...]`.
            *shared: pytrees of arrays `[batch, ...]`, or None.
            rng: keys `[batch]`, folded for each layer by its place; None where nothing is drawn.

        Raises:
            TaskError: a layer returns another carry than it was given.
            ShardingError: over a pipeline, a batch that does not divide.
        """
        graph, params, derived, rest = nnx.split(self.layers, nnx.Param, nnx.RngState, ...)
        values, tree = jax.tree.flatten(params)

        def one(values: Any, index: jax.Array, carry: Any, shared: tuple, rng: jax.Array | None) -> Any:
            layer = nnx.merge(graph, jax.tree.unflatten(tree, values), _of_layer(derived, index), rest)
            return _checked(layer, carry, layer(carry, *shared, fold_in(rng, index)))

        unroll = unrolls_layers(current().platform, self.count) if self.unroll is None else self.unroll
        one = remat(one, in_scan=not unroll)

        def apply(values: Any, first: Any, carry: Any, shared: tuple, rng: jax.Array | None) -> Any:
            def step(carry: Any, layer: tuple[Any, jax.Array]) -> tuple[Any, None]:
                return one(*layer, checkpoint_name(carry, CARRY), shared, rng), None

            here = values[0].shape[0]
            return jax.lax.scan(step, carry, (values, first + jnp.arange(here)), unroll=unroll)[0]

        if current().use(AXIS) == 1:
            values = [x.reshape(self.count, *x.shape[2:]) for x in values] if self.repeats > 1 else values
            return apply(values, 0, carry, shared, rng)
        if jax.tree.leaves(derived):
            raise TaskError(
                f"Stack of {type(self.layers).__name__}: its layers hold random state, of which all microbatches of a "
                "pipeline would see the same. Use engine.layers.Dropout, which draws by example, or mesh.pipeline=1."
            )
        values = values if self.repeats > 1 else [x[None] for x in values]
        return pipeline(apply, values, carry, shared, rng)


def _params(layer: nnx.Module) -> list[nnx.Variable]:
    """The parameters of the layers, after the refusal of what is none."""
    found = []
    for path, variable in nnx.iter_graph(layer):
        if isinstance(variable, nnx.Param):
            found.append(variable)
        elif isinstance(variable, nnx.Variable) and not isinstance(variable, nnx.RngState):
            where, kind = "/".join(map(str, path)), type(variable).__name__
            raise TaskError(
                f"Stack of {type(layer).__name__}: {where} is a {kind}. Layers of a stack hold parameters only "
                "(nnx.Param): normalise with engine.layers.RMSNorm or nnx.LayerNorm, and make a constant in __call__."
            )
    return found


def _stacked_metadata(variable: nnx.Variable, leading: tuple[str, ...]) -> dict[str, Any]:
    """A parameter's metadata with the dimensions of the stack before its own."""
    metadata = variable.get_metadata()
    own = metadata.pop("out_sharding", None)
    own = tuple(metadata.pop("logical_axes", own) or ())
    if set(own) & set(STACKED):
        raise TaskError(
            f"Stack: a layer has a parameter with the logical axes {own}, which a stack adds itself. Make one stack of "
            "all layers, or write the inner layers out with nnx.List."
        )
    return {**metadata, "logical_axes": (*leading, *own)}


def _of_layer(derived: Any, index: jax.Array) -> Any:
    """The random state of one layer: keys are folded by its place."""

    def leaf(x: jax.Array) -> jax.Array:
        return jax.random.fold_in(x, index) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    return jax.tree.map(leaf, derived)


def _checked(layer: nnx.Module, before: Any, after: Any) -> Any:
    """The carry that a layer returns, after the check that it is of the kind that it was given."""
    found, given = (jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree) for tree in (after, before))
    if found != given:
        raise TaskError(
            f"Stack: {type(layer).__name__} was given {given} and returned {found}. Each layer returns the carry as it "
            "came: the same structure, shapes and dtypes (x.astype(...) where a layer computes in another)."
        )
    return after
