"""Queues of a pipeline: microbatches come in order, each from its stage, and results return to the rows' devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from engine.layers.queues import AXIS, Queues
from engine.parallel.layout import Layout
from tests.layers import plain

ROWS = 120


@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize(("stages", "microbatches"), [(4, 4), (2, 6), (4, 5), (4, 2), (3, 10), (8, 3)])
def test_microbatches_are_taken_in_order_and_results_keep_their_rows(stages, microbatches, forward):
    mesh = plain.mesh(stages, pipeline=stages) if stages > 4 else plain.mesh(2 * stages, pipeline=stages, data=2)
    queues = Queues(Layout(mesh=mesh, microbatches=microbatches), ROWS, stages, 1)
    taker = 0 if forward else stages - 1

    def turn(state, m):
        """Sends the microbatch of the taking stage to all stages, and so to the putting one."""
        queue, results = state
        x = lax.psum(jnp.where(lax.axis_index(AXIS) == taker, queues.slot(queue, m), 0), AXIS)
        queue = queues.pop(queue, m, moves=True, forward=forward)
        return (queue, queues.push(results, m, 2 * x, moves=True, forward=forward)), x

    def run(queue):
        queue = queue if forward else queues.mirrored(queue)
        (_, results), taken = lax.scan(turn, (queue, queue), jnp.arange(microbatches))
        return (results if forward else queues.mirrored(results)), taken

    @jax.jit
    def program(x):
        spec = jax.P(AXIS)
        out, taken = jax.shard_map(
            run, mesh=mesh, in_specs=spec, out_specs=(spec, jax.P()), axis_names={AXIS}, check_vma=False
        )(queues.fill(x))
        return queues.drain(out), taken

    x = np.arange(float(ROWS), dtype=np.float32)
    out, taken = program(x)
    np.testing.assert_array_equal(out, 2 * x)
    np.testing.assert_array_equal(
        taken, np.moveaxis(x.reshape(queues.shards, microbatches, -1), 1, 0).reshape(taken.shape)
    )


def test_without_a_microbatch_a_queue_does_not_move():
    mesh = plain.mesh(2, pipeline=2)
    queues = Queues(Layout(mesh=mesh, microbatches=4), 8, 2, 1)

    def run(queue):
        queue = queues.pop(queue, jnp.int32(1), jnp.bool(False))
        return queues.push(queue, jnp.int32(0), 7 + queue[0], jnp.bool(False))

    call = jax.shard_map(run, mesh=mesh, in_specs=jax.P(AXIS), out_specs=jax.P(AXIS), check_vma=False)
    x = np.arange(8.0)
    np.testing.assert_array_equal(jax.jit(lambda x: queues.drain(call(queues.fill(x))))(x), x)
