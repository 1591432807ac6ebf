"""The memory of a drive: it follows the vehicle, starts anew with each drive, and is not used without `remembers`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convoy_zoo.models.street.lidar import CELL, STRIDE
from convoy_zoo.models.street.memory import SIDE, DriveDetection, Memory, moved

METRES = CELL * STRIDE  # of a cell of the memory


@pytest.fixture(scope="module")
def state():
    return jax.random.normal(jax.random.key(0), (1, SIDE, SIDE, 2))


def motion(x=0.0, y=0.0, yaw=0.0):
    return jnp.array([[x, y, yaw]])


def test_state_moves_against_the_vehicle(state):
    ahead = moved(state, motion(x=2 * METRES))
    np.testing.assert_allclose(ahead[:, :, :-2], state[:, :, 2:], atol=1e-5)
    assert not ahead[:, :, -2:].any()
    left = moved(state, motion(y=METRES / 2))
    np.testing.assert_allclose(left[:, :-1], (state[:, :-1] + state[:, 1:]) / 2, atol=1e-5)


def test_state_turns_against_the_vehicle(state):
    np.testing.assert_allclose(moved(state, motion(yaw=np.pi)), state[:, ::-1, ::-1], atol=1e-4)
    quarter = moved(state, motion(yaw=np.pi / 2))  # what was on the left is now ahead
    np.testing.assert_allclose(quarter[0, SIDE // 2, -1], state[0, -1, SIDE // 2 - 1], atol=1e-4)


def test_memory_adds_nothing_at_first():
    memory = Memory(8, 2, nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (1, SIDE, SIDE, 8))
    found, state = memory(x, jnp.zeros((1, SIDE, SIDE, 2)))
    np.testing.assert_array_equal(found, x)
    assert state.any()


def test_state_belongs_to_a_drive():
    """With memory, the result of a sweep depends on the state, unless a drive starts; without, it never does."""
    empty = {"points": jnp.zeros((1, 1, 8, 4)), "mask": {"points": jnp.zeros((1, 1, 8), bool)}}

    def logits_of(task: DriveDetection):
        model = task.build(nnx.Rngs(0))
        model.eval()
        model.memory.add.kernel[...] = jnp.ones_like(model.memory.add.kernel[...])
        graph, values = nnx.split(model)

        @jax.jit
        def logits(starts: jax.Array, value: float):
            model = nnx.merge(graph, values, copy=True)
            model.state[...] = jnp.full_like(model.state[...], value)
            batch = {**empty, "motion": motion()[None], "sequence": {"starts": starts[None]}}
            return model(batch, task.remembers)[0]

        return logits

    with_memory, without = (logits_of(DriveDetection(4, 2, rows=1, remembers=remembers)) for remembers in (True, False))
    goes_on, starts = jnp.array(False), jnp.array(True)
    assert (with_memory(goes_on, 1.0) != with_memory(goes_on, 0.0)).any()
    np.testing.assert_array_equal(with_memory(starts, 1.0), with_memory(starts, 0.0))
    np.testing.assert_array_equal(without(goes_on, 1.0), without(goes_on, 0.0))
