"""Attention of a layer: one function for every platform and every mesh.

It chooses an implementation: `kernels.py` on one device, `ring.py` or `all_to_all.py` for sequences that are split
over the mesh axis `context`, `blockwise.py` in plain XLA. Inside a `jax.shard_map`, as in a stage of a pipeline, only
plain XLA is used (jax 0.12 refuses gradients of some nested maps), and the keys of a split sequence are gathered.
"""

import jax

from engine.config.errors import TaskError
from engine.layers import blockwise, kernels
from engine.layers.all_to_all import all_to_all_attention
from engine.layers.ring import ring_attention
from engine.parallel import layout


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool, segment_ids: jax.Array | None = None
) -> jax.Array:
    """Returns softmax(q kᵀ / sqrt(head_dim)) v, in the shape and dtype of `q`. Scores and softmax are float32.

    With fewer heads of keys than of queries it is grouped-query attention (Ainslie et al. 2023).

    Args:
        q: `[batch, time, heads, head_dim]`.
        k: `[batch, time, kv_heads, head_dim]`; `heads` is a multiple of `kv_heads`.
        v: as `k`.
        causal: whether a position attends only to itself and earlier positions of its row.
        segment_ids: integers `[batch, time]`, one for each document of a packed row: a position attends only within its
            segment. 0 is padding, which is a segment too: its results are finite and have no meaning.

    Raises:
        TaskError: the shapes do not fit together.
        ShardingError: a split sequence does not divide.
    """
    _check(q, k, v, segment_ids)
    here = layout.current()
    context = here.use("context")
    inside = bool(jax.sharding.get_abstract_mesh().manual_axes)
    if here.mesh is None or here.mesh.size == 1:
        return kernels.attend(here.platform, q, k, v, causal=causal, segment_ids=segment_ids)
    if context > 1 and not inside:
        split = {"ring": ring_attention, "all-to-all": all_to_all_attention}[here.context]
        return split(q, k, v, causal=causal, segment_ids=segment_ids)
    spec, segment_spec, parts = kernels.specs(here, q)
    k, v = (kernels.divide_heads(x, parts) for x in (k, v))
    if context > 1:
        q = here.constrain(q, "batch", "sequence", "heads", None)
        k, v = (here.constrain(x, "batch", None, "heads", None) for x in (k, v))
        # One block: a block of queries would be a slice through the devices.
        return blockwise.attention(q, k, v, causal=causal, segment_ids=segment_ids, block=q.shape[1])
    if here.platform == "cpu" or inside:
        return blockwise.attention(q, k, v, causal=causal, segment_ids=segment_ids)

    def local(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
        return kernels.attend(here.platform, q, k, v, causal=causal, segment_ids=segment_ids)

    # XLA cannot split a kernel, so each device calls it on its rows and heads. Kernels do not state over which axes
    # their results vary: no check of it.
    on_each_device = jax.shard_map(
        local, mesh=here.inner_mesh, in_specs=(spec, spec, spec, segment_spec), out_specs=spec, check_vma=False
    )
    return on_each_device(q, k, v, segment_ids)


def _check(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None) -> None:
    """Raises TaskError for shapes that do not fit together."""
    batch, time, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    if k.shape != (batch, time, kv_heads, head_dim) or v.shape != k.shape:
        raise TaskError(
            f"attention: q is {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}. All are "
            f"[batch, time, heads, head_dim], and only the heads of q may differ."
        )
    if heads % kv_heads:
        raise TaskError(
            f"attention: {heads} heads are not a multiple of kv_heads = {kv_heads}. Each head of keys serves as many "
            f"heads of queries."
        )
    if segment_ids is not None and segment_ids.shape != (batch, time):
        raise TaskError(f"attention: segment_ids are {list(segment_ids.shape)}, and must be {[batch, time]}.")
