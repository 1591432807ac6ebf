"""The gradient of a Task with `encode` and `loss_of`: the loss of all rows, however many microbatches encode them.

As in GradCache (Gao et al. 2021, arXiv:2101.06983, section 3): encode all microbatches without a gradient, compute the
loss of all rows and its gradient for their encodings, then encode each microbatch again and pull that gradient back.
Both passes draw the same random numbers and start from the same model state.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from engine.base.types import PyTree
from engine.data.batch import Batch
from engine.data.context import call
from engine.training.arrays import Arrays, cast
from engine.training.gradients import Part, Shared, called_with, microbatches, minimised_by, sum_gradients
from engine.training.task import encode

type Encodings = list[jax.Array]
"""The leaves of the result of `Task.encode` that have a gradient."""


def encoded_gradients(
    shared: Shared, trained: Arrays, model_state: Arrays, batch: Batch, keys: jax.Array, parts: Part
) -> tuple[Arrays, jax.Array, Arrays]:
    """Returns the gradients of the objectives, the metrics `[names, 2]` and the new model state.

    Args:
        shared: what the microbatches have in common.
        trained: path -> trained parameter.
        model_state: the model state before the step.
        batch: the global batch.
        keys: the keys of its rows `[rows]`.
        parts: its microbatches.
    """
    encoded = _encode_all(shared, trained, model_state, parts)
    leaves, structure = jax.tree.flatten(encoded)
    with_gradient = [jnp.issubdtype(x.dtype, jnp.inexact) for x in leaves]

    def minimised(encodings: Encodings) -> tuple[Arrays, jax.Array]:
        left = iter(encodings)
        whole = [next(left) if is_trained else x for x, is_trained in zip(leaves, with_gradient, strict=True)]
        spec = shared.spec
        context = spec.context(shared.step, keys, batch.weight)
        examples = cast(batch.examples, spec.compute_dtype, spec.task.full_precision)
        rows = jax.tree.unflatten(structure, whole)
        result = call(spec.task.loss_of, rows, examples, context.mask, context=context)
        return minimised_by(shared, None, result, batch)

    first = [x for x, is_trained in zip(leaves, with_gradient, strict=True) if is_trained]
    values, pullback, sums = jax.vjp(minimised, first, has_aux=True)
    pulled = {}
    for group in values:
        (found,) = pullback({name: jnp.full_like(x, name == group) for name, x in values.items()})
        pulled[group] = microbatches(shared.spec, found)
    inner = dataclasses.replace(shared, losses=_pulled_back)
    grads, _, new = sum_gradients(inner, None, trained, model_state, (*parts, pulled))
    return grads, sums, new


def _encode_all(shared: Shared, trained: Arrays, model_state: Arrays, parts: Part) -> PyTree:
    """Returns the encodings of all rows `[rows, ...]`."""

    def step(model_state: Arrays, part: Part) -> tuple[Arrays, PyTree]:
        encoded, new = _encode(shared, trained, model_state, *part)
        return new, encoded

    _, found = jax.lax.scan(step, model_state, parts, unroll=shared.spec.unroll)
    return jax.tree.map(functools.partial(_whole, shared), found)


def _encode(
    shared: Shared, trained: Arrays, model_state: Arrays, batch: Batch, keys: jax.Array, index: jax.Array
) -> tuple[PyTree, Arrays]:
    """Returns the encodings of a microbatch, and the new model state."""
    spec = shared.spec
    module, examples = called_with(shared, trained, model_state, batch, index)
    context = spec.context(shared.step, keys, batch.weight)
    encoded = encode(spec.task, module, examples, keys, context)
    new = {path: x.astype(model_state[path].dtype) for path, x in spec.model.model_state_of(module).items()}
    return encoded, new


def _whole(shared: Shared, parts: jax.Array) -> jax.Array:
    """Reverses `microbatches`: returns `[rows, ...]` of `[microbatches, rows / microbatches, ...]`."""
    sharding = NamedSharding(shared.spec.mesh, shared.spec.batch_sharding.spec)
    rows = parts.swapaxes(0, 1).reshape(-1, *parts.shape[2:])
    return jax.lax.with_sharding_constraint(rows, sharding)


def _pulled_back(
    shared: Shared,
    weights: Arrays | None,
    trained: Arrays,
    model_state: Arrays,
    *part: PyTree,
) -> tuple[Arrays, tuple[jax.Array, Arrays]]:
    """Returns group -> a number whose gradient is that of the loss.

    The last entry of `part` holds the gradients of the encodings of its rows, by group.
    """
    *inputs, pulled = part
    encoded, new = _encode(shared, trained, model_state, *inputs)
    leaves = [x for x in jax.tree.leaves(encoded) if jnp.issubdtype(x.dtype, jnp.inexact)]
    minimised = {}
    for group, gradients in pulled.items():
        pairs = [(x.astype(jnp.float32), g.astype(jnp.float32)) for x, g in zip(leaves, gradients, strict=True)]
        minimised[group] = sum((jnp.vdot(x, g) for x, g in pairs), jnp.float32(0))
    return minimised, (jnp.zeros((len(shared.metric_names), 2)), new)
