"""All-to-all attention gives the results of the formula on every mesh."""

import jax.numpy as jnp
import pytest

from engine.base.errors import ShardingError
from engine.layers.all_to_all import all_to_all_attention
from engine.parallel.layout import Layout, active
from tests.layers import plain

MESHES = {
    "8": dict(context=8),
    "2x4": dict(data=2, context=4),
    "2x2x2": dict(data=2, context=2, tensor=2),
    "2": dict(devices=2, context=2),
}


@pytest.mark.slow
# Both kinds of masks with each axis.
@pytest.mark.parametrize(
    ("mesh", "masked"), [("8", True), ("2x4", False), ("2x2x2", True), ("2x2x2", False), ("2", False)]
)
def test_result_and_gradients_equal_the_formula_on_every_mesh(mesh, masked):
    layout = Layout(mesh=plain.mesh(**MESHES[mesh]))
    plain.check(all_to_all_attention, causal=masked, segmented=masked, layout=layout)


@pytest.mark.slow
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_indivisible_key_heads_are_repeated(kv_heads):
    layout = Layout(mesh=plain.mesh(context=4, tensor=2))
    plain.check(all_to_all_attention, causal=True, segmented=True, kv_heads=kv_heads, layout=layout)


def test_half_precision_with_an_unused_mesh_axis():
    # Tolerance as in blockwise_test.py. Gradients of repeated key heads would be rounded before their sum.
    layout = Layout(mesh=plain.mesh(pipeline=2, context=4))
    plain.check(
        all_to_all_attention, layout=layout, causal=True, segmented=True, dtype="bfloat16", kv_heads=4, tolerance=0.03
    )


def test_gradients_are_not_summed_over_an_unused_mesh_axis():
    layout = Layout(mesh=plain.mesh(pipeline=2, context=4))
    arrays = plain.inputs(kv_heads=4)
    text = plain.compiled_text(
        all_to_all_attention, arrays, None, "context", causal=True, segment_ids=None, layout=layout
    )
    sums = [line for line in text.splitlines() if " all-reduce(" in line]
    assert all(" = f32[] " in line for line in sums)  # only the sum of the test itself


@pytest.mark.parametrize("segmented", [True, False])
def test_heads_use_all_to_all_and_only_segment_ids_are_gathered(segmented):
    layout = Layout(mesh=plain.mesh(data=2, context=4))
    ids = plain.segments() if segmented else None
    text = plain.compiled_text(
        all_to_all_attention, plain.inputs(kv_heads=4), "data", "context", causal=True, segment_ids=ids, layout=layout
    )
    assert "all-to-all" in text
    gathered = [line for line in text.splitlines() if " all-gather(" in line]
    assert len(gathered) == segmented
    assert all(" = s32[" in line for line in gathered)


@pytest.mark.parametrize(
    ("shape", "axes", "message"),
    [
        (
            (2, 18, 4, 4),
            dict(data=2, context=4),
            r"18 positions .* context=4. .* multiple of 4 \(20\), or mesh.context=2",
        ),
        (
            (2, 16, 6, 4),
            dict(data=2, context=4),
            r"6 heads are not divisible by context=4, .*multiple of 4 \(8\), mesh.context=2, or sharding.context=ring",
        ),
        ((2, 16, 6, 4), dict(context=4, tensor=2), r"6 heads .* context=4 times the 2 parts .*multiple of 8 \(8\)"),
    ],
)
def test_indivisible_sizes_raise_sharding_error(shape, axes, message):
    q = jnp.zeros(shape)
    with active(Layout(mesh=plain.mesh(**axes))), pytest.raises(ShardingError, match=message):
        all_to_all_attention(q, q, q, causal=True, segment_ids=None)
