"""The products of attention that are counted: those of the formula, half of them in causal order."""

import jax.numpy as jnp
import pytest

from engine.compile.flops import count_flops
from engine.layers.dot_product_attention import attention
from engine.parallel.layout import Layout
from tests.layers import plain

LAYOUT = Layout(mesh=plain.mesh(context=4, tensor=2), counts_flops=True)


@pytest.mark.parametrize("kv_heads", [1, 8])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("time", [16, 7])
def test_products_of_attention_and_its_gradient_are_counted_on_any_mesh(kv_heads, causal, time):
    """With lengths and heads that the mesh could not split, too."""
    q, k, v = plain.inputs(kv_heads, "bfloat16", time)
    traced = plain.program(attention, causal=causal, segment_ids=None, layout=LAYOUT).trace(q, k, v)
    product = 2 * plain.BATCH * plain.HEADS * time * time * plain.HEAD_DIM
    assert count_flops(traced.jaxpr.jaxpr) == (3 if causal else 6) * product
    assert traced.out_info[0][1].dtype == jnp.bfloat16 and not LAYOUT.used
