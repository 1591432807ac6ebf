"""Ring attention gives the results of the formula, and no device holds all keys."""

import jax.numpy as jnp
import pytest

from engine.base.errors import ShardingError
from engine.layers.ring import ring_attention
from engine.parallel.layout import Layout, active
from tests.layers import plain

MESHES = {
    "8": dict(context=8),
    "2x4": dict(data=2, context=4),
    "2x2x2": dict(data=2, context=2, tensor=2),
    "2": dict(devices=2, context=2),
    "2x3": dict(devices=6, data=2, context=3),
}


@pytest.mark.slow
# Both orders with each axis, and with a ring of two devices; one_key_head... has the causal order with `tensor`.
@pytest.mark.parametrize(
    ("mesh", "causal"), [("8", True), ("2x4", False), ("2x2x2", False), ("2", False), ("2x3", True)]
)
def test_result_and_gradients_equal_the_formula_on_every_mesh(mesh, causal):
    layout = Layout(mesh=plain.mesh(**MESHES[mesh]))
    plain.check(ring_attention, causal=causal, segmented=True, layout=layout)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
def test_result_and_gradients_equal_the_formula_without_segments(causal):
    layout = Layout(mesh=plain.mesh(devices=3, context=3))
    plain.check(ring_attention, causal=causal, segmented=False, kv_heads=8, layout=layout)


@pytest.mark.slow
def test_one_key_head_serves_split_query_heads():
    layout = Layout(mesh=plain.mesh(devices=4, context=2, tensor=2))
    plain.check(ring_attention, causal=True, segmented=False, kv_heads=1, layout=layout)


@pytest.mark.parametrize("causal", [True, False])
def test_half_precision_is_close_to_the_formula(causal):
    # Tolerance as in blockwise_test.py; the sums over the ring are float32.
    layout = Layout(mesh=plain.mesh(devices=3, context=3))
    plain.check(ring_attention, causal=causal, segmented=True, dtype="bfloat16", layout=layout, tolerance=0.03)


@pytest.mark.parametrize("causal", [True, False])
def test_keys_are_permuted_and_never_gathered(causal):
    layout = Layout(mesh=plain.mesh(data=2, context=4))
    text = plain.compiled_text(
        ring_attention, plain.inputs(), "data", "context", causal=causal, segment_ids=plain.segments(), layout=layout
    )
    assert "collective-permute" in text
    assert not [word for word in ("all-gather", "all-to-all") if word in text]


def test_causal_order_halves_the_work_of_a_step():
    def flops(causal):
        layout = Layout(mesh=plain.mesh(devices=3, context=3))
        return plain.flops(ring_attention, (1, 192, 1, 128), causal=causal, segment_ids=None, layout=layout)

    # The device's own keys are one block, and each step computes two of four pairs of chunks.
    assert flops(causal=True) < 0.75 * flops(causal=False)


@pytest.mark.parametrize(
    ("time", "causal", "message"),
    [
        (
            20,
            True,
            r"20 positions are not divisible by 8 \(twice mesh axis context=4, .*multiple of 8 \(24\), "
            "or mesh.context=2, or sharding.context=all-to-all",
        ),
        (18, False, r"18 positions are not divisible by 4 \(mesh axis context=4\). .*\(20\), or mesh.context=2\."),
    ],
)
def test_indivisible_length_raises_sharding_error(time, causal, message):
    q = jnp.zeros((2, time, 2, 4))
    with active(Layout(mesh=plain.mesh(data=2, context=4))), pytest.raises(ShardingError, match=message):
        ring_attention(q, q, q, causal=causal, segment_ids=None)
