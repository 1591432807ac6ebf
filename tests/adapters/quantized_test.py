"""Kernels of a base in int8 and nf4: their errors, the layers that read them, and warm starts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from engine import Task, layers
from engine.adapters import Adapter, adapted, merged
from engine.adapters.modules import add
from engine.adapters.quantized import NF4, StoredAs
from engine.base.errors import ConfigError, TaskError
from engine.checkpoint.warm_start import read_weights
from engine.config.schema import Init, MeshSpec
from tests import zoo
from tests.adapters.single import draw
from tests.checkpoint.saves import Saves

WIDTH = 64
MAKE = {
    "Dense": lambda rngs: layers.Dense(WIDTH, 6, axes=("embed", "mlp"), bias=True, rngs=rngs),
    "Conv": lambda rngs: nnx.Conv(WIDTH, 6, (3,), rngs=rngs),
}


def test_int8_has_a_scale_for_each_column():
    kernel = draw(3, 5, 4) * jnp.asarray([1, 10, 100, 0])
    stored = StoredAs("int8", 1)
    codes, scale = stored.encode(kernel).values()
    assert codes.dtype == jnp.int8 and codes.shape == kernel.shape and scale.shape == (3, 4)
    largest = np.abs(kernel).max(1, keepdims=True)
    assert (np.abs(stored.decode(codes, scale) - kernel) <= largest / 254 * 1.001).all()


def test_nf4_rounds_to_its_numbers_in_blocks_of_64():
    kernel = np.asarray(draw(2, 128, 6))
    stored = StoredAs("nf4", 1)
    codes, scale = stored.encode(jnp.asarray(kernel)).values()
    assert codes.dtype == jnp.uint8 and codes.shape == (2, 64, 6) and scale.shape == (2, 2, 6)
    blocks = kernel.reshape(2, 2, 64, 6)
    largest = np.abs(blocks).max(2, keepdims=True)
    nearest = np.abs((blocks / largest)[..., None] - np.asarray(NF4)).argmin(-1)
    expected = (np.asarray(NF4, np.float32)[nearest] * largest).reshape(kernel.shape)
    np.testing.assert_allclose(stored.decode(codes, scale), expected, rtol=1e-6)
    [one, _] = (stored.decode(codes[i], scale[i]) for i in range(2))  # as in a stack of layers
    np.testing.assert_allclose(one, expected[0], rtol=1e-6)


@pytest.mark.parametrize(("name", "kind"), [("Dense", "nf4"), ("Conv", "int8")])
def test_layers_compute_with_the_stored_kernel(name, kind):
    plain, module = MAKE[name](nnx.Rngs(0)), MAKE[name](nnx.Rngs(0))
    add(module, {"lora": Adapter("kernel")}, "", nnx.Rngs(1), kind)
    held = vars(module)
    assert held["kernel"].dtype == {"int8": jnp.int8, "nf4": jnp.uint8}[kind]
    held["kernel_lora_b"].set_value(draw(8, 6))
    before, kernel = plain.kernel.get_value(), module.kernel.get_value()
    product = (held["kernel_lora_a"].get_value() @ held["kernel_lora_b"].get_value()).reshape(before.shape)
    assert 0 < np.abs(kernel - product - before).max() < (0.005 if kind == "int8" else 0.07)
    plain.kernel.set_value(kernel)
    x = draw(5, 7, WIDTH)
    np.testing.assert_allclose(module(x), plain(x), rtol=1e-2, atol=1e-2)  # the bias is in bfloat16
    found = merged(module)
    assert type(found) is type(plain) and not hasattr(found, "kernel_scale")
    np.testing.assert_array_equal(found.kernel.get_value(), kernel)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.layer = layers.Dense(WIDTH, WIDTH, axes=("embed", "mlp"), rngs=rngs)

    def __call__(self, x, rng):
        return jnp.tanh(self.layer(x))


def test_stack_keeps_no_decoded_kernels():
    stack = layers.Stack(Block, 3, rngs=nnx.Rngs(0), unroll=False)
    add(stack, {"lora": Adapter("kernel", rank=2)}, "", nnx.Rngs(1), "int8")
    graph, adapters, rest = nnx.split(stack, lambda path, x: "lora" in str(path), ...)
    _, pullback = jax.vjp(lambda adapters: nnx.merge(graph, adapters, rest)(draw(5, WIDTH)), adapters)
    assert {str(x.dtype) for x in jax.tree.leaves(pullback) if x.size >= 3 * WIDTH * WIDTH} == {"int8"}


class Layers(nnx.Module):
    def __init__(self, rngs):
        self.layers = layers.Stack(Block, 2, rngs=rngs)

    def __call__(self, x, rng):
        return self.layers(jnp.tile(x, 4))


class Stacked(zoo.Classify):
    def build(self, rngs):
        return Layers(rngs)


def test_warm_start_stores_kernels_of_floats_on_a_mesh(tmp_path):
    kernel = draw(2, WIDTH, WIDTH)
    store = Saves(tmp_path / "checkpoints")
    store.save(5, {"step": jnp.int32(5), "params": {"layers/layers/layer/kernel": kernel}, "carried": {}})
    store.close()
    task: Task = adapted(Stacked(), match="kernel", base="nf4")
    program = zoo.program(task, mesh=MeshSpec(fsdp=2, tensor=2), devices=4)
    state, model = program.abstract_state.to_tree(), program.spec.model
    found = read_weights(Init(checkpoint=str(tmp_path)), state, model.stacked, model.without_values()).params
    expected = StoredAs("nf4", 1).encode(kernel)
    for end, x in expected.items():
        path = f"layers/layers/layer/kernel{end}"
        np.testing.assert_array_equal(found[path], x)
        assert found[path].sharding == state["params"][path].sharding
    assert found["layers/layers/layer/kernel"].sharding.shard_shape(expected[""].shape)[1] < expected[""].shape[1]


class Residual(zoo.Classify):
    """Layers whose input is a parameter in bfloat16 and whose kernels are decoded in float32."""

    def build(self, rngs):
        return ResidualLayers(rngs)


class ResidualLayers(Layers):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.start = nnx.Param(rngs.normal((WIDTH,)))

    def __call__(self, x, rng):
        return self.layers(jnp.zeros((len(x), 1), self.start.dtype) + self.start)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_loss_is_traced_in_the_precision_of_the_step(precision):
    task: Task = adapted(Residual(), match="kernel", base="int8")
    program = zoo.program(task, precision=precision)
    assert program.abstract_state.params["start"].dtype == jnp.bfloat16
    assert "accuracy" in program.task_metrics


def test_what_does_not_fit_is_an_error():
    with pytest.raises(TaskError, match=r"kernel \[6, 4\]: nf4 stores blocks of 64 inputs"):
        add(nnx.Linear(6, 4, rngs=nnx.Rngs(0)), {"lora": Adapter("kernel")}, "", nnx.Rngs(1), "nf4")
    with pytest.raises(TaskError, match=r"kernel \[6, 2, 2\]: its outputs have several dimensions"):
        add(nnx.LinearGeneral(6, (2, 2), rngs=nnx.Rngs(0)), {"lora": Adapter("kernel")}, "", nnx.Rngs(1), "int8")
    with pytest.raises(ConfigError, match=r"task.base = 'int4'. Allowed: float32"):
        adapted(Stacked(), match="kernel", base="int4")  # pyright: ignore[reportArgumentType]
