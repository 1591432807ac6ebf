"""Attention gives the results of the formula on every mesh and platform."""

import jax
import jax.numpy as jnp
import pytest

from engine.base.errors import TaskError
from engine.layers.dot_product_attention import attention
from engine.parallel.layout import Layout
from tests.layers import plain


class GpuLayout(Layout):
    """A layout that reports GPUs as its devices; no GPU kernel supports float32."""

    @property
    def platform(self):
        return "gpu"


@pytest.mark.parametrize(("causal", "segmented"), [(True, True), (False, False)])
def test_result_and_gradients_equal_the_formula_on_one_device(causal, segmented):
    plain.check(attention, causal=causal, segmented=segmented)


@pytest.mark.parametrize(("kind", "kv_heads"), [(Layout, 1), (Layout, 8), (GpuLayout, 2)])
def test_result_and_gradients_equal_the_formula_with_split_rows_and_heads(kind, kv_heads):
    layout = kind(mesh=plain.mesh(data=2, tensor=4))
    plain.check(attention, causal=True, segmented=True, kv_heads=kv_heads, layout=layout)


def test_split_heads_need_no_communication():
    layout = Layout(mesh=plain.mesh(data=2, tensor=4))
    text = plain.compiled_text(
        attention, plain.inputs(kv_heads=4), "data", None, "tensor", causal=True, segment_ids=None, layout=layout
    )
    assert not [word for word in ("all-gather", "all-to-all", "collective-permute") if word in text]


@pytest.mark.parametrize("context", ["ring", "all-to-all"])
def test_split_sequence_uses_the_implementation_of_the_layout(context):
    layout = Layout(mesh=plain.mesh(context=2, devices=2), context=context)
    text = plain.compiled_text(attention, plain.inputs(), None, "context", causal=True, segment_ids=None, layout=layout)
    assert ("collective-permute" in text, "all-to-all" in text) == (context == "ring", context != "ring")
    assert layout.used == {"context", "attention:48,8,2,1"}


@pytest.mark.parametrize(("kv_heads", "context"), [(1, "ring"), (2, "all-to-all")])
def test_result_and_gradients_equal_the_formula_inside_a_pipeline_stage(kv_heads, context):
    layout = Layout(mesh=plain.mesh(pipeline=2, context=2, tensor=2), context=context)

    def staged(q, k, v, *, causal, segment_ids):
        def stage(q, k, v, segment_ids):
            return attention(q, k, v, causal=causal, segment_ids=segment_ids)

        rows = (jax.P("pipeline"),) * 4
        stages = jax.shard_map(
            stage, mesh=layout.mesh, in_specs=rows, out_specs=rows[0], axis_names={"pipeline"}, check_vma=False
        )
        return stages(q, k, v, segment_ids)

    plain.check(staged, causal=True, segmented=True, kv_heads=kv_heads, layout=layout)


def test_padding_is_finite_and_does_not_affect_documents():
    q, k, v = plain.inputs()
    ids = plain.segments()
    padding = (ids == 0)[:, :, None, None]
    assert padding.any()

    def out(k, v):
        return jnp.where(padding, 0, attention(q, k, v, causal=False, segment_ids=ids))

    assert jnp.isfinite(attention(q, k, v, causal=False, segment_ids=ids)).all()
    assert (out(k, v) == out(jnp.where(padding, 7, k), jnp.where(padding, 7, v))).all()


@pytest.mark.parametrize(
    ("q", "k", "segments", "message"),
    [
        ((2, 8, 4, 8), (2, 8, 3, 8), None, "4 heads are not a multiple of kv_heads = 3"),
        ((2, 8, 4, 8), (2, 9, 4, 8), None, r"q is \[2, 8, 4, 8\], k \[2, 9, 4, 8\]"),
        ((2, 8, 4, 8), (2, 8, 4, 8), (2, 9), r"segment_ids are \[2, 9\], but must be \[2, 8\]"),
    ],
)
def test_inconsistent_shapes_raise_task_error(q, k, segments, message):
    ids = None if segments is None else jnp.ones(segments, int)
    with pytest.raises(TaskError, match=message):
        attention(jnp.zeros(q), jnp.zeros(k), jnp.zeros(k), causal=True, segment_ids=ids)
