"""Grouped products: each group of rows times its kernel, equal by blocks and by ragged_dot."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.layers.platforms.grouped_products import Blocks, blocks_for, grouped_matmul

KERNELS = jax.random.normal(jax.random.key(0), (4, 6, 10))
ROWS = jax.random.normal(jax.random.key(1), (40, 6))
SIZES = np.array([8, 0, 16, 8])  # the last 8 rows belong to no group


def wanted(rows, kernels):
    ends = np.cumsum(SIZES)
    return jnp.concatenate([rows[e - n : e] @ kernels[i] for i, (e, n) in enumerate(zip(ends, SIZES, strict=True))])


@pytest.mark.parametrize("blocks", [Blocks(1), Blocks(4), Blocks(8), Blocks(8, 1), Blocks(4, 3), Blocks(8, 5)], ids=str)
def test_each_group_is_multiplied_by_its_kernel(blocks):
    def ours(rows, kernels):
        return grouped_matmul(rows, kernels, jnp.asarray(SIZES), blocks)[:32]

    def gradient(function):
        return jax.jit(jax.grad(lambda *args: (function(*args) ** 2).sum(), argnums=(0, 1)))(ROWS, KERNELS)

    np.testing.assert_allclose(jax.jit(ours)(ROWS, KERNELS), wanted(ROWS, KERNELS), rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), gradient(ours), gradient(wanted))


@pytest.mark.parametrize("blocks", [Blocks(8), Blocks(8, 1), Blocks(4, 5)], ids=str)
def test_rows_after_the_last_group_are_not_computed(blocks):
    rows = ROWS.at[32:].set(jnp.nan)
    total = jax.value_and_grad(lambda kernels: grouped_matmul(rows, kernels, jnp.asarray(SIZES), blocks).sum())
    y, kernels = jax.jit(total)(KERNELS)
    assert jnp.isfinite(y) and jnp.isfinite(kernels).all()


@pytest.mark.parametrize("blocks", [Blocks(8), Blocks(8, 40)], ids=str)
def test_half_precision_is_summed_in_float32_over_blocks(blocks):
    rows, kernels = jnp.full((512, 2), 0.1, jnp.bfloat16), jnp.ones((1, 2, 3), jnp.bfloat16)
    gradient = jax.grad(lambda kernels: grouped_matmul(rows, kernels, jnp.array([512]), blocks).sum())(kernels)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(gradient.astype(jnp.float32), 51.2, rtol=1e-2)


def test_block_size_follows_the_expected_rows_per_group():
    assert [blocks_for("cpu", rows, 8) for rows in (0, 64, 400, 4096)] == [Blocks(n) for n in (8, 16, 64, 128)]
    assert blocks_for("tpu", 4096, 8) == blocks_for("reference", 4096, 8) == Blocks(1)


def test_batched_product_of_a_gpu_has_a_quarter_more_rows_than_expected():
    assert blocks_for("gpu", 8192, 8) == Blocks(128, 10)
    assert blocks_for("gpu", 0, 8).block == 8
