"""DoRA, and dropout by the keys of the rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from engine import layers
from engine.adapters import Adapter
from engine.adapters.modules import add
from engine.base.errors import TaskError
from engine.data.context import Context, call
from tests.adapters.single import DENSE, draw, with_adapter

KEYS = jax.random.split(jax.random.key(3), 6)


@pytest.mark.parametrize("make", DENSE.values(), ids=DENSE)
def test_dora_scales_each_column_to_its_magnitude(make):
    plain, (module, product) = make(), with_adapter(make(), dora=True)
    offset = vars(module)["kernel_lora_magnitude"]
    offset.set_value(draw(4))
    kernel = np.asarray(vars(module)["kernel"].get_value()).reshape(-1, 4)
    direction = kernel + np.asarray(product)
    magnitude = np.linalg.norm(kernel, axis=0) + np.asarray(offset.get_value())
    kernel = magnitude * direction / np.linalg.norm(direction, axis=0)
    plain.kernel.set_value(jnp.asarray(kernel.reshape(plain.kernel.shape)))
    x = draw(5, 7, 6)
    np.testing.assert_allclose(module(x), plain(x), rtol=1e-5, atol=1e-5)


def test_dora_of_a_column_of_zeros_is_finite():
    module = DENSE["Linear"]()
    module.kernel.set_value(jnp.zeros((6, 4)))
    add(module, {"lora": Adapter("kernel", dora=True)}, "", nnx.Rngs(1))
    assert not np.asarray(module(draw(5, 6))).any()


def test_norms_have_no_gradient():
    module, product = with_adapter(DENSE["Conv"](), dora=True)
    graph, a, rest = nnx.split(module, lambda path, x: path[-1] == "kernel_lora_a", ...)
    _, pullback = jax.vjp(lambda a: nnx.merge(graph, a, rest).kernel.get_value(), a)
    kernel, d_y = vars(module)["kernel"].get_value(), draw(3, 6, 4)
    both = kernel.reshape(-1, 4) + product
    factor = jnp.linalg.norm(kernel.reshape(-1, 4), axis=0) / jnp.linalg.norm(both, axis=0)
    expected = 1.5 * (d_y.reshape(-1, 4) * factor) @ vars(module)["kernel_lora_b"].get_value().T
    [found] = jax.tree.leaves(pullback(d_y))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def called(module, x, keys=KEYS):
    """Returns the result of a layer within a step whose examples have these keys."""
    return call(module, x, context=Context(0, 0, 1, keys))


def dropping(name="Linear", **settings):
    module, _ = with_adapter(DENSE[name](), dropout=0.5, **settings)
    module.train()
    return module


@pytest.mark.parametrize("dora", [False, True])
def test_dropout_depends_on_the_rows_alone(dora):
    module, x = dropping(dora=dora), draw(6, 3, 6)
    whole = called(module, x)
    parts = [called(module, x[part], KEYS[part]) for part in (slice(0, 2), slice(2, 6))]
    np.testing.assert_allclose(whole, np.concatenate(parts), rtol=1e-6, atol=1e-5)
    module.eval()
    assert np.abs(called(module, x) - whole).max() > 1e-2
    np.testing.assert_array_equal(called(module, x), module(x))


def test_dropout_drops_the_input_of_the_matrix_alone():
    module, x = dropping("Dense"), jnp.ones((6, 6))
    plain = DENSE["Dense"]()(x)
    a, b = (vars(module)[f"kernel_lora_{part}"].get_value() for part in "ab")
    masks = [np.array([(number >> bit) & 1 for bit in range(6)]) * 2.0 for number in range(64)]
    results = [1.5 * mask @ np.asarray(a @ b) for mask in masks]
    for found in np.asarray(called(module, x) - plain):
        assert min(np.abs(found - result).max() for result in results) < 1e-4


def test_kernels_and_layers_draw_different_numbers():
    one, x = dropping(), jnp.ones((6, 6))
    two = dropping()
    vars(two)["kernel_lora_layer"].set_value(jnp.int32(1))
    assert not np.array_equal(called(one, x), called(two, x))
    stack = layers.Stack(lambda rngs: nnx.Linear(6, 6, rngs=rngs), 3, rngs=nnx.Rngs(0))
    add(stack, {"lora": Adapter("kernel", dropout=0.5)}, "", nnx.Rngs(1))
    assert vars(stack.layers)["kernel_lora_layer"].get_value().tolist() == [0, 1, 2]


def test_rows_of_an_example_draw_different_numbers():
    found = np.asarray(called(dropping(), jnp.ones((24, 6))) - DENSE["Linear"]()(jnp.ones((24, 6))))
    assert len(np.unique(found.round(4), axis=0)) > 12


def test_dropout_without_keys_of_the_rows_is_an_error():
    module = dropping()
    with pytest.raises(TaskError, match=r"dropout = 0.5: found no key for each example in Linear"):
        module(draw(6, 6))
    with pytest.raises(TaskError, match=r"found 5 rows for the keys of \(6,\) examples"):
        called(module, draw(5, 6))
    with pytest.raises(TaskError, match="reads the attribute kernel of a Linear instead of calling it"):
        _ = module.kernel
