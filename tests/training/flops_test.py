"""FLOPs by shapes: products, convolutions, loops and branches."""

import jax
import jax.numpy as jnp

from engine.training.flops import count_flops, has_convolution


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


def test_unused_products_do_not_count():
    def function(a, b):
        def body(carry, _):
            _unused = carry @ b @ b.T
            return carry, (carry @ b).sum()

        return jax.lax.scan(body, a, length=3)[1] + (a @ b).shape[0]

    assert flops(function, (3, 4), (4, 5)) == 3 * 2 * 3 * 4 * 5
