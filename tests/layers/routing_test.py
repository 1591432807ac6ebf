"""Routing: the choices, the losses, the order of dropping, and moves whose gradients are gathers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.layers import routing
from engine.layers.routing import group_sizes

X = jax.random.normal(jax.random.key(0), (3, 6, 16))
KERNEL = jax.random.normal(jax.random.key(1), (16, 5))
WEIGHT = jnp.array([[1, 1, 1, 1, 1, 1], [1, 1, 0, 2, 0, 0], [0, 0, 0, 0, 0, 0]], jnp.float32)
CHOICES = jnp.array([[0, 1], [1, 0], [0, 1], [0, 3], [3, 3]])  # three experts; 3 stands for none

route = jax.jit(routing.route, static_argnums=2)


@functools.partial(jax.jit, static_argnums=0)
def rows(capacity):
    sizes = group_sizes(CHOICES, 3)
    return routing.assign_rows(CHOICES, sizes, jnp.arange(3) * capacity, jnp.full(3, capacity), 3 * capacity)


def test_tokens_go_to_their_most_probable_experts_and_padding_to_none():
    routes = route(X, KERNEL, 2, WEIGHT)
    best, experts = jax.lax.top_k(jax.nn.softmax(X @ KERNEL), 2)
    real = np.asarray(WEIGHT) > 0
    np.testing.assert_array_equal(routes.experts, jnp.where(real[..., None], experts, 5))
    np.testing.assert_allclose(routes.weights[real], (best / best.sum(-1, keepdims=True))[real], rtol=1e-5)
    assert (np.asarray(routes.weights)[~real] == 0).all()


def test_ties_choose_the_first_expert_and_never_the_same_expert_twice():
    np.testing.assert_array_equal(route(X, 0 * KERNEL, 3, WEIGHT).experts[0], [[0, 1, 2]] * 6)
    certain = route(1e4 * X, KERNEL, 5, WEIGHT)  # all probabilities but one are 0
    np.testing.assert_array_equal(jnp.sort(certain.experts[0]), [range(5)] * 6)


def test_single_choice_is_weighted_by_its_probability():
    @jax.jit
    @jax.grad
    def gradient(kernel):
        return routing.route(X, kernel, 1, WEIGHT).weights.sum()

    np.testing.assert_allclose(
        route(X, KERNEL, 1, WEIGHT).weights[0, :, 0], jax.nn.softmax(X @ KERNEL).max(-1)[0], rtol=1e-5
    )
    assert float(jnp.abs(gradient(KERNEL)).max()) > 1e-2


def test_losses_are_weighted_sums_over_the_tokens_of_a_sequence():
    logits = np.asarray(X @ KERNEL, np.float64)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    balance, router_z = np.zeros(3), np.zeros(3)
    for b in range(2):
        share, load = np.zeros(5), np.zeros(5)
        for t in range(6):
            for e in np.argsort(-p[b, t])[:2]:
                share[e] += WEIGHT[b, t] / 2
            load += WEIGHT[b, t] * p[b, t]
            router_z[b] += WEIGHT[b, t] * np.log(np.exp(logits[b, t]).sum()) ** 2
        tokens = float(WEIGHT[b].sum())
        balance[b] = tokens * 5 * ((share / tokens) * (load / tokens)).sum()
    losses = route(X, KERNEL, 2, WEIGHT).losses
    np.testing.assert_allclose(losses["balance"], balance, rtol=1e-5)
    np.testing.assert_allclose(losses["router_z"], router_z, rtol=1e-5)


def test_router_computes_in_float32():
    half = route(X.astype(jnp.bfloat16), KERNEL.astype(jnp.bfloat16), 2, WEIGHT)
    wanted = route(X.astype(jnp.bfloat16).astype(jnp.float32), KERNEL.astype(jnp.bfloat16), 2, WEIGHT)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), vars(half), vars(wanted))
    assert half.weights.dtype == half.losses["balance"].dtype == jnp.float32


def test_first_choices_come_before_second_choices():
    # Expert 0 gets tokens 0, 2, 3 (first choice), then token 1 (second choice). Expert 1 gets token 1, then 0 and 2.
    first, second = rows(4).row.reshape(2, 5)
    np.testing.assert_array_equal(first, [0, 4, 1, 2, 12])
    np.testing.assert_array_equal(second, [5, 3, 6, 12, 12])


def test_choices_beyond_the_capacity_are_dropped_last_first():
    first, second = rows(2).row.reshape(2, 5)
    np.testing.assert_array_equal(first, [0, 2, 1, 6, 6])
    np.testing.assert_array_equal(second, [3, 6, 6, 6, 6])
    np.testing.assert_array_equal(rows(2).choice, [0, 2, 1, 5, 10, 10])


@pytest.mark.parametrize("capacity", [2, 4])
def test_gather_and_combine_equal_products_with_one_hot_matrices(capacity):
    plan, x, weights = rows(capacity), X[0, :5], jax.random.uniform(jax.random.key(2), (5, 2))
    one_hot = jax.nn.one_hot(plan.row.reshape(2, 5), 3 * capacity)  # [rank, token, row]

    def moved(x, weights):
        return plan.combine(plan.gather(x) ** 2, weights)

    def wanted(x, weights):
        return jnp.einsum("ktr,tk,rf->tf", one_hot, weights, jnp.einsum("ktr,tf->rf", one_hot, x) ** 2)

    def gradient(function):
        return jax.jit(jax.grad(lambda *args: (function(*args) ** 2).sum(), argnums=(0, 1)))

    np.testing.assert_allclose(jax.jit(moved)(x, weights), jax.jit(wanted)(x, weights), rtol=1e-5, atol=1e-6)
    actual, expected = gradient(moved)(x, weights), gradient(wanted)(x, weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), actual, expected)
    assert "scatter" not in gradient(moved).lower(x, weights).as_text()


def test_backward_pass_of_half_precision_keeps_no_float32_input():
    def kept(x):
        def weights(x, kernel):
            return routing.route(x, kernel, 2, WEIGHT).weights

        pullback = jax.eval_shape(lambda *args: jax.vjp(weights, *args)[1], x, KERNEL.astype(x.dtype))
        return [leaf.dtype for leaf in jax.tree.leaves(pullback) if leaf.shape == x.shape]

    assert kept(X.astype(jnp.bfloat16)) == [jnp.bfloat16]
    assert kept(X) == [jnp.float32]


def test_half_precision_has_the_gradient_of_float32():
    gradient = jax.jit(jax.grad(lambda x, k: (routing.route(x, k, 2, WEIGHT).weights ** 2).sum(), (0, 1)))
    half = (X.astype(jnp.bfloat16), KERNEL.astype(jnp.bfloat16))
    found, wanted = gradient(*half), gradient(*(x.astype(jnp.float32) for x in half))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a.astype(np.float32), b, rtol=2**-7, atol=1e-3), found, wanted)
