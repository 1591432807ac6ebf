"""Blockwise attention gives the results of the formula for any block size, without computing masked blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.layers import blockwise
from engine.layers.platforms.control_flow import QUERY_BLOCK
from tests.layers import plain


@pytest.mark.parametrize("block", [None, 16, 20])
@pytest.mark.parametrize("causal", [True, False])
def test_result_and_gradients_equal_the_formula_for_every_block_size(block, causal):
    function = functools.partial(blockwise.attention, block=block)
    plain.check(function, causal=causal, segmented=True)


@pytest.mark.parametrize("kv_heads", [1, 8])  # the other tests have 2
def test_query_heads_share_key_heads(kv_heads):
    function = functools.partial(blockwise.attention, block=16)
    plain.check(function, causal=True, segmented=False, kv_heads=kv_heads)


@pytest.mark.slow
def test_last_block_can_be_shorter():
    assert QUERY_BLOCK < 160 and 160 % QUERY_BLOCK
    plain.check(blockwise.attention, causal=True, segmented=True, time=160)


@pytest.mark.parametrize("causal", [True, False])
def test_half_precision_rounds_only_the_result(causal):
    # bfloat16 has 8 significant bits: the error of a result of 2.5 is up to 0.006, of a gradient of 7.3 up to 0.027.
    function = functools.partial(blockwise.attention, block=16)
    plain.check(function, causal=causal, segmented=True, dtype="bfloat16", tolerance=0.03)


def test_scores_and_softmax_are_float32_in_half_precision():
    def normalisers(dtype):
        q, k, v = (x.astype(dtype) for x in plain.inputs(dtype="bfloat16"))
        q, k, v = blockwise.group(q, 2), blockwise.swap(k), blockwise.swap(v)
        return blockwise.forward(q, k, v, None, causal=True)[1]

    np.testing.assert_allclose(normalisers("bfloat16"), normalisers("float32"), rtol=0, atol=plain.TOLERANCE)


def test_large_scores_do_not_overflow():
    q, k, v = plain.inputs()
    out, gradients = plain.results(blockwise.attention, (100 * q, 100 * k, v), causal=True, segment_ids=None)
    assert all(np.isfinite(x).all() for x in (out, *gradients))


def test_row_without_allowed_keys_is_finite():
    q, k, v = plain.inputs()
    q, k, v = blockwise.group(q, 2), blockwise.swap(k), blockwise.swap(v)
    ones = jnp.ones((plain.BATCH, plain.TIME), int)
    out, lse = blockwise.forward(q, k, v, (ones, 2 * ones), causal=False)
    assert np.isfinite(out).all() and (lse < -1e29).all()


def test_masked_half_is_not_computed():
    def flops(causal):
        function = functools.partial(blockwise.attention, block=16)
        return plain.flops(function, (4, 128, 2, 128), causal=causal, segment_ids=None)

    # With 8 blocks, (8 + 1) / 16 of the pairs are computed.
    assert flops(causal=True) < 0.6 * flops(causal=False)


def test_scores_are_not_kept_for_the_gradient():
    q, k, v = plain.inputs()
    _, gradient = jax.vjp(lambda *x: blockwise.attention(*x, causal=True, segment_ids=None), q, k, v)
    assert max(x.size for x in jax.tree.leaves(gradient)) <= q.size < plain.BATCH * plain.HEADS * plain.TIME**2


def test_cpu_masks_the_scores_once():
    q, k, v = plain.inputs()
    segments = jnp.ones((plain.BATCH, plain.TIME), int)
    attend = functools.partial(blockwise.attention, causal=True, segment_ids=segments, block=16)
    gradient = jax.jit(jax.grad(lambda *args: attend(*args).sum(), argnums=(0, 1, 2)))
    program = str(gradient.lower(q, k, v).compile().as_text())
    passes = [text for text in program.split("\n\n") if "exponential(" in text]
    assert passes and not any("compare(" in text for text in passes)


def test_cpu_transposes_the_keys_once():
    q, k, v = plain.inputs()
    attend = functools.partial(blockwise.attention, causal=True, segment_ids=None, block=16)
    gradient = jax.jit(jax.grad(lambda *args: attend(*args).sum(), argnums=(0, 1, 2)))
    program = str(gradient.lower(q, k, v).compile().as_text())
    sliced = [text for text in program.split("\n\n") if "slice(" in text]
    assert sliced and not any("copy(%" in text for text in sliced if "ENTRY" not in text)


def test_program_of_both_passes_never_holds_the_scores_of_all_blocks():
    q, k, v = plain.inputs(time=512)

    def value(q, k, v):
        return jnp.sin(blockwise.attention(q, k, v, causal=False, segment_ids=None)).sum()

    memory = jax.jit(jax.grad(value, argnums=(0, 1, 2))).lower(q, k, v).compile().memory_analysis()
    scores = 4 * plain.BATCH * plain.HEADS * 512**2
    assert memory is not None and memory.temp_size_in_bytes < scores / 2
