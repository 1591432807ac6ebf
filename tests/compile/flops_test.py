"""FLOPs by shapes: products, convolutions, loops and branches."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from engine import Loss, Mean, Task
from engine.compile.flops import CAUSAL, count_flops, has_callback, has_convolution, has_unknown_length
from engine.config.schema import MeshSpec
from engine.layers import Experts, Stack, attention, cross_entropy
from engine.parallel.mesh import make_mesh
from tests import zoo


def flops(function, *shapes) -> int:
    return count_flops(jax.make_jaxpr(function)(*(jnp.ones(shape) for shape in shapes)).jaxpr)


def conv(x, w, stride=1, groups=1):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, w, (stride, stride), "SAME", dimension_numbers=layout, feature_group_count=groups
    )


def test_product_counts_two_flops_per_multiply_add():
    assert flops(jnp.dot, (3, 4), (4, 5)) == 2 * 3 * 4 * 5
    assert flops(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (2, 3, 4), (2, 4, 5)) == 2 * 2 * 3 * 4 * 5
    assert flops(lambda a: a + a * a, (100,)) == 0


def test_convolution_counts_its_kernel_at_each_output():
    assert flops(conv, (2, 8, 8, 3), (3, 3, 3, 16)) == 2 * (2 * 8 * 8 * 16) * (3 * 3 * 3)
    assert flops(lambda x, w: conv(x, w, 2), (2, 8, 8, 3), (3, 3, 3, 16)) == 2 * (2 * 4 * 4 * 16) * (3 * 3 * 3)
    assert flops(lambda x, w: conv(x, w, 1, 4), (1, 8, 8, 4), (3, 3, 1, 8)) == 2 * (8 * 8 * 8) * (3 * 3)


def test_scan_counts_each_iteration_and_cond_its_most_expensive_branch():
    def loop(x):
        return jax.lax.scan(lambda c, _: (c @ c, None), x, length=7)[0]

    def branch(x):
        return jax.lax.cond(x[0, 0] > 0, lambda y: y @ y, lambda y: y @ y @ y, x)

    assert flops(loop, (4, 4)) == 7 * 2 * 4**3
    assert flops(branch, (4, 4)) == 2 * 2 * 4**3
    assert flops(jax.jit(jax.checkpoint(lambda x: x @ x)), (4, 4)) == 2 * 4**3


def test_gradient_counts_twice_its_forward_pass():
    def loss(w, x):
        return (x @ w[0] @ w[1]).sum()

    count = count_flops(
        jax.make_jaxpr(jax.value_and_grad(loss))((jnp.ones((4, 4)), jnp.ones((4, 4))), jnp.ones((8, 4))).jaxpr
    )
    assert count == 2 * 8 * 4 * 4 * (2 + 3)  # forward 2; backward 2 for weights and 1 for activations


def test_nested_convolution_is_found():
    x, w = jnp.ones((1, 4, 4, 1)), jnp.ones((2, 2, 1, 1))
    inside = jax.jit(lambda x: conv(x, w))
    assert has_convolution(jax.make_jaxpr(jax.grad(lambda y: inside(y).sum()))(x).jaxpr)
    assert not has_convolution(jax.make_jaxpr(lambda y: (y * 2).sum())(x).jaxpr)


def test_nested_callback_is_found():
    def printed(x):
        jax.debug.print("{}", x.sum())
        return x

    def called(x):
        return jax.pure_callback(np.asarray, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    x = jnp.ones(3)
    assert has_callback(jax.make_jaxpr(lambda x: jax.jit(printed)(x).sum())(x).jaxpr)
    assert has_callback(jax.make_jaxpr(called)(x).jaxpr)
    assert not has_callback(jax.make_jaxpr(lambda x: jax.jit(jnp.sum)(x))(x).jaxpr)


def test_unused_products_do_not_count():
    def function(a, b):
        def body(carry, _):
            _unused = carry @ b @ b.T
            return carry, (carry @ b).sum()

        return jax.lax.scan(body, a, length=3)[1] + (a @ b).shape[0]

    assert flops(function, (3, 4), (4, 5)) == 3 * 2 * 3 * 4 * 5


def test_unused_results_of_scans_branches_and_calls_do_not_count():
    """Only what the needed results use counts, also through the carry of a loop."""

    def body(carry, x):
        first, second, third = carry
        return (first + second, second @ x, third @ x @ x), None

    def loop(needed):
        def run(x):
            carry = (x, x, x)
            found = jax.lax.scan(body, carry, jnp.stack([x] * 5))[0]
            return found[needed]

        return run

    assert flops(loop(0), (4, 4)) == 5 * 2 * 4**3  # the first needs the second, which has one product
    assert flops(loop(2), (4, 4)) == 5 * 2 * 2 * 4**3

    def both(x):
        return x @ x, x @ x @ x

    assert flops(lambda x: jax.jit(both)(x)[0], (4, 4)) == 2 * 4**3
    assert flops(lambda x: jax.lax.cond(x[0, 0] > 0, both, both, x)[0], (4, 4)) == 2 * 4**3


def test_gradient_of_a_strided_convolution_counts_twice_its_forward_pass():
    forward = flops(lambda x, w: conv(x, w, 2), (2, 8, 8, 3), (4, 4, 3, 16))
    gradient = jax.grad(lambda x, w: (conv(x, w, 2) ** 2).sum(), (0, 1))
    assert flops(gradient, (2, 8, 8, 3), (4, 4, 3, 16)) == 3 * forward


def test_ragged_product_counts_each_row_once_with_its_gradient():
    def loss(rows, kernels):
        return (jax.lax.ragged_dot(rows, kernels, jnp.array([1, 2, 4])) ** 2).sum()

    assert flops(loss, (7, 4), (3, 4, 5)) == 2 * 7 * 4 * 5
    assert flops(jax.grad(loss, (0, 1)), (7, 4), (3, 4, 5)) == 3 * 2 * 7 * 4 * 5


def test_body_of_a_shard_map_counts_once_per_device_of_its_axes():
    mesh, rows = make_mesh(MeshSpec(data=4, tensor=2)), PartitionSpec("data")

    def product(axes):
        return jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=rows, out_specs=rows, axis_names=axes)

    one_part = 2 * 2 * 2 * 16  # [2, 16] of [8, 16]
    assert flops(product({"data"}), (8, 16)) == 4 * one_part
    assert flops(product({"data", "tensor"}), (8, 16)) == 8 * one_part


def test_kernel_counts_each_block_of_its_grid():
    from jax.experimental import pallas

    def kernel(x, y):
        y[...] = x[...] @ x[...]

    block = pallas.BlockSpec((4, 4), lambda i: (i, 0))
    call = pallas.pallas_call(
        kernel, jax.ShapeDtypeStruct((12, 4), jnp.float32), grid=(3,), in_specs=[block], out_specs=block
    )
    assert flops(call, (12, 4)) == 3 * 2 * 4**3


def test_half_of_causal_attention_counts_with_its_gradient():
    def convoy_causal_attention(x):
        return jnp.sin(x @ x)

    assert convoy_causal_attention.__name__ == CAUSAL
    function = jax.jit(convoy_causal_attention)
    assert flops(function, (4, 4)) == 4**3
    assert flops(jax.grad(lambda x: (function(x) ** 2).sum()), (4, 4)) == 3 * 4**3


def test_product_in_a_loop_of_unknown_length_is_found():
    def loop(product):
        return jax.jit(lambda x: jax.lax.while_loop(lambda x: x[0, 0] > 1, product, x))

    def unknown(product):
        return has_unknown_length(jax.make_jaxpr(loop(product))(jnp.ones((4, 4))).jaxpr)

    assert unknown(lambda x: x @ x) and not unknown(lambda x: x / 2)


TIME, WIDTH, VOCABULARY = 8, 16, 12
EXAMPLE = {"x": jax.ShapeDtypeStruct((TIME, WIDTH), np.float32), "y": jax.ShapeDtypeStruct((TIME,), np.int32)}


class Layer(nnx.Module):
    """Causal attention and experts."""

    def __init__(self, rngs):
        self.project = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.experts = Experts(WIDTH, 8, 4, 2, capacity_factor=1.25, rngs=rngs)

    def __call__(self, x, rng):
        q, k = (y.reshape(*x.shape[:2], 2, -1) for y in (x, self.project(x)[..., :WIDTH]))
        return self.experts(x + attention(q, k, k, causal=True).reshape(x.shape))[0]


class Model(nnx.Module):
    """A stack of layers and a kernel of logits."""

    def __init__(self, rngs):
        self.stack = Stack(Layer, 2, rngs=rngs)
        self.head = nnx.Linear(WIDTH, VOCABULARY, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return self.stack(x)


class Layers(Task):
    """Cross-entropy in four chunks, which recomputes the logits."""

    def build(self, rngs):
        return Model(rngs)

    def loss(self, model, batch, rng):
        return Loss.of(cross_entropy(model(batch["x"]), model.head.kernel.get_value(), batch["y"], chunks=4))


@functools.cache
def default_flops() -> tuple[float, float]:
    """Returns the FLOPs of the model and those of the hardware."""
    program = zoo.program(Layers(), batch_size=16, example=EXAMPLE)
    program.trace(1)
    return program.flops_per_step, program.hardware_flops_per_step


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"layout": {"remat": "full"}},
        {"layout": {"remat": "dots"}, "precision": "bfloat16"},
        {"accumulate": 4},
        {"mesh": MeshSpec(expert=4, data=2), "layout": {"remat": "full"}},
        {"mesh": MeshSpec(pipeline=2, fsdp=4)},
        {"target": "optax.contrib.muon"},
    ],
    ids=str,
)
def test_model_flops_are_those_of_the_default_step(options):
    program = zoo.program(Layers(), batch_size=16, example=EXAMPLE, **options)
    program.trace(1)
    wanted, of_hardware = default_flops()
    assert program.flops_per_step == wanted
    assert program.hardware_flops_per_step >= of_hardware > wanted


class OwnStep(zoo.Classify):
    """The step of a Classify as an `update`."""

    def update(self, state, batch, context):
        def loss(params):
            result: Any = zoo.Classify.loss(self, state.model(params), batch, context.rng)
            return result.total.sum() / result.weight.sum(), result

        grads, result = jax.grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads), {"loss": Mean(result.total, result.weight)}


@pytest.mark.parametrize("target", ["optax.adamw", "optax.contrib.muon"])
def test_flops_of_an_update_leave_out_the_optimizer(target):
    assert (
        zoo.program(OwnStep(), target=target).flops_per_step
        == zoo.program(zoo.Classify(), target=target).flops_per_step
    )


class Checkpointed(zoo.Classify):
    """A Classify whose loss recomputes everything for the gradient."""

    def loss(self, model, batch, rng):
        return jax.checkpoint(lambda batch: zoo.Classify.loss(self, model, batch, rng))(batch)


def test_recomputation_of_the_author_does_not_count():
    program, wanted = (zoo.program(task, batch_size=16) for task in (Checkpointed(), zoo.Classify()))
    assert program.flops_per_step == wanted.flops_per_step
    program.trace(1)
    assert program.hardware_flops_per_step > program.flops_per_step
