import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from engine.base.errors import TaskError
from engine.perception import DeformableAttention, deformable_attention
from tests.perception.goldens import differing


def test_values_and_gradients_equal_pytorch():
    assert differing("deformable", 2) == []
    assert differing("module of deformable attention", 2) == []  # also the gradients of all parameters


def module():
    return DeformableAttention(8, heads=4, levels=2, points=3, rngs=nnx.Rngs(0))


def test_new_module_averages_values_around_its_reference_points():
    """On maps that are linear in x and y, the mean of points on a square around a place is the value there."""
    attention = module()
    rows, columns = 33, 65

    def ramp(rows, columns):
        x, y = (jnp.arange(columns) + 0.5) / columns, (jnp.arange(rows) + 0.5) / rows
        return jnp.broadcast_to((x + 2 * y[:, None])[None, :, :, None], (1, rows, columns, 8)) * jnp.arange(1.0, 9)

    references = jnp.array([[[0.3, 0.4], [0.5, 0.6]]])
    queries = jax.random.normal(jax.random.key(0), (1, 2, 8))
    levels = [ramp(rows, columns), ramp(17, 33)]

    found = nnx.jit(lambda m, *x: m(*x))(attention, queries, references, levels)
    steps = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])[:, None] * np.arange(1, 4)[:, None]  # [heads, points, 2]
    value, out = (layer.kernel.get_value() for layer in (attention.value, attention.out))
    wanted = np.zeros((2, 8))
    for query, (x, y) in enumerate(np.asarray(references[0])):
        read = np.zeros(8)
        for height, width in ((rows, columns), (17, 33)):
            moved = (steps / [width, height] + [x, y]) @ [1, 2]  # [heads, points]
            each = moved.mean(1)[:, None] * (np.arange(1.0, 9) @ value).reshape(4, 2)
            read += each.reshape(8) / 2
        wanted[query] = read @ out
    np.testing.assert_allclose(found[0], wanted, rtol=2e-4, atol=2e-4)


def test_levels_that_do_not_fit_are_an_error():
    level = jnp.zeros((1, 4, 4, 2, 3))
    with pytest.raises(TaskError, match=r"found 1 levels, and 2 in the points \(1, 5, 2, 2, 3, 2\)"):
        deformable_attention([level], jnp.zeros((1, 5, 2, 2, 3, 2)), jnp.zeros((1, 5, 2, 2, 3)))
    with pytest.raises(TaskError, match="features = 8 must be divisible by heads = 3"):
        DeformableAttention(8, heads=3, rngs=nnx.Rngs(0))
    with pytest.raises(TaskError, match="found 1 levels, but levels = 2"):
        module()(jnp.zeros((1, 2, 8)), jnp.zeros((1, 2, 2)), [jnp.zeros((1, 4, 4, 8))])
