"""Adapters in the modules of a model: what each layer computes, and which parameters they add."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from engine import layers
from engine.adapters import Adapter, adapted
from engine.adapters.modules import add
from engine.base.errors import TaskError
from tests.adapters import subjects
from tests.adapters.single import DENSE, draw, with_adapter


@pytest.mark.parametrize("make", DENSE.values(), ids=DENSE)
def test_layer_computes_with_the_kernel_plus_the_product(make):
    plain, (module, product) = make(), with_adapter(make())
    plain.kernel.set_value(plain.kernel.get_value() + product.reshape(plain.kernel.shape))
    x = draw(5, 7, 6)
    np.testing.assert_allclose(module(x), plain(x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(module.kernel.get_value(), plain.kernel.get_value(), rtol=1e-5, atol=1e-5)


def test_several_dense_layers_of_one_input_have_adapters():
    pair = [with_adapter(DENSE["Dense"]())[0], DENSE["Dense"]()]
    x = draw(5, 6)
    found = list(layers.project(x, *pair))
    np.testing.assert_array_equal(found, [layer(x) for layer in pair])


def test_experts_have_an_adapter_each():
    experts = layers.Experts(6, 4, 3, 1, capacity_factor=None, rngs=nnx.Rngs(0))
    down = experts.down.get_value()
    module, product = with_adapter(experts, "down")
    assert product.shape == (3, 4, 6) and not np.array_equal(product[0], product[1])
    np.testing.assert_allclose(module.down.get_value(), down + product, rtol=1e-5, atol=1e-5)


def test_dense_layer_computes_no_gradient_of_its_kernel():
    module, _ = with_adapter(DENSE["Linear"]())
    graph, adapters, rest = nnx.split(module, lambda path, x: "lora" in str(path), ...)

    def loss(adapters, x):
        return jnp.sum(nnx.merge(graph, adapters, rest)(x) ** 2)

    text = str(jax.make_jaxpr(jax.grad(loss))(adapters, draw(5, 6)))
    assert "f32[6,2]" in text and text.count("f32[6,4]") == 1  # the kernel itself, an input


class Step(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.LinearGeneral(6, 6, rngs=rngs)

    def __call__(self, x, rng):
        return jnp.tanh(self.layer(x))


def test_stack_keeps_no_kernels_with_adapters_for_the_backward_pass():
    stack = layers.Stack(Step, 3, rngs=nnx.Rngs(0), unroll=False)
    add(stack, {"lora": Adapter("kernel", rank=2)}, "", nnx.Rngs(1))
    b = vars(stack.layers.layer)["kernel_lora_b"]
    b.set_value(draw(*b.shape))
    graph, adapters, rest = nnx.split(stack, lambda path, x: "lora" in str(path), ...)
    _, pullback = jax.vjp(lambda adapters: nnx.merge(graph, adapters, rest)(draw(5, 6)), adapters)
    kept = [x for x in jax.tree.leaves(pullback) if x.shape == (3, 6, 6)]
    kernel = vars(stack.layers.layer)["kernel"].get_value()
    assert kept and all(np.array_equal(x, kernel) for x in kept)


def test_several_adapters_of_one_kernel_are_added():
    module = DENSE["Linear"]()
    x, kernel = draw(5, 6), module.kernel.get_value()
    adapters = {"one": Adapter("kernel", rank=2), "two": Adapter("kernel", rank=3, alpha=6)}
    add(module, adapters, "", nnx.Rngs(1))
    held = vars(module)
    for name in ("one", "two"):
        held[f"kernel_{name}_b"].set_value(draw(*held[f"kernel_{name}_b"].shape))
    product = sum(
        adapter.scale * held[f"kernel_{name}_a"].get_value() @ held[f"kernel_{name}_b"].get_value()
        for name, adapter in adapters.items()
    )
    np.testing.assert_allclose(module(x), x @ (kernel + product), rtol=1e-5, atol=1e-5)


class Pair(nnx.Module):
    def __init__(self, rngs):
        self.one, self.two = nnx.Linear(2, 2, rngs=rngs), nnx.Linear(2, 2, rngs=rngs)


def test_initial_values_depend_on_the_path_and_the_name_alone():
    def matrices(match, *names):
        model = Pair(nnx.Rngs(0))
        add(model, {name: Adapter(match) for name in names}, "", nnx.Rngs(1))
        return {"/".join(map(str, path)): x.get_value() for path, x in nnx.to_flat_state(nnx.state(model, nnx.Param))}

    few, many = matrices("two", "x"), matrices("kernel", "y", "x")
    path = "two/kernel_x_a"
    np.testing.assert_array_equal(few[path], many[path])
    assert not np.array_equal(many[path], many["two/kernel_y_a"])
    assert not np.array_equal(many[path], many["one/kernel_x_a"])


def test_structures_of_two_models_are_equal():
    graphs = []
    for _ in range(2):
        task = adapted(subjects.Small(), match="kernel")
        graphs.append(nnx.split(nnx.eval_shape(lambda task=task: task.build(nnx.Rngs(0))))[0])
    assert graphs[0] == graphs[1] and hash(graphs[0]) == hash(graphs[1])


def test_bfloat16_base_keeps_what_is_trained_in_float32():
    model = subjects.Net(nnx.Rngs(0))
    add(model, {"lora": Adapter("head/kernel")}, "^conv/", nnx.Rngs(1), "bfloat16")
    float32 = [path for path, x in nnx.to_flat_state(nnx.state(model, nnx.Param)) if x.dtype == jnp.float32]
    assert {"/".join(map(str, path)) for path in float32} == {
        "conv/bias",
        "conv/kernel",
        "head/kernel_lora_a",
        "head/kernel_lora_b",
    }


class Shared(Pair):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.two.kernel = self.one.kernel


class Taken(nnx.Module):
    def __init__(self, rngs):
        self.kernel = nnx.Param(jnp.zeros((2, 2)))
        self.kernel_lora_a = 3


@pytest.mark.parametrize(
    ("model", "match", "text"),
    [
        (subjects.Net, "attention", r"match = 'attention' matches no kernel. Kernels: conv/kernel, .*head/kernel"),
        (subjects.Net, "bias", "matches no kernel"),
        (Shared, "kernel", "two/kernel is the parameter one/kernel, too"),
        (Taken, "kernel", "kernel_lora_a exists already"),
    ],
)
def test_what_cannot_have_an_adapter_is_an_error(model, match, text):
    with pytest.raises(TaskError, match=text):
        add(model(nnx.Rngs(0)), {"lora": Adapter(match)}, "", nnx.Rngs(1))


def test_settings_that_a_layer_does_not_allow_are_errors():
    with pytest.raises(TaskError, match=r"dropout = 0.1: kernel is a kernel of Conv, but only engine.layers.Dense and"):
        with_adapter(DENSE["Conv"](), dropout=0.1)
    two = {"one": Adapter("kernel", dora=True), "two": Adapter("kernel")}
    with pytest.raises(TaskError, match="kernel: adapters one and two both match, but DoRA"):
        add(DENSE["Linear"](), two, "", nnx.Rngs(1))
