"""Attention for every platform and mesh, in one function that chooses an implementation.

It uses `kernels.py` on the heads and rows of one device, `ring.py` or `all_to_all.py` for sequences split over the mesh
axis `context`, `blockwise.py` in plain XLA, and `reference.py` to count FLOPs. Stages of a pipeline use the same
implementations.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax

from engine.base.errors import TaskError
from engine.layers import blockwise, kernels, portable, reference
from engine.layers.all_to_all import all_to_all_attention
from engine.layers.manual import on_each_device
from engine.layers.ring import ring_attention
from engine.parallel import layout

type Observer = Callable[[jax.Array, jax.Array, bool, jax.Array | None], None]
"""Called with q, k, `causal` and `segment_ids` of an attention while it is traced."""
_observer: contextvars.ContextVar[Observer | None] = contextvars.ContextVar("_observer", default=None)


@contextlib.contextmanager
def observed(by: Observer) -> Iterator[None]:
    """Lets a function see the arguments of each `attention` that this thread traces while the block runs."""
    token = _observer.set(by)
    try:
        yield
    finally:
        _observer.reset(token)


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool, segment_ids: jax.Array | None = None
) -> jax.Array:
    """Returns softmax(q kᵀ / sqrt(head_dim)) v, in the shape and dtype of `q`. Scores and softmax are float32.

    With `kv_heads` below `heads` it is grouped-query attention (Ainslie et al. 2023).

    Args:
        q: `[batch, time, heads, head_dim]`.
        k: `[batch, time, kv_heads, head_dim]`; `heads` is a multiple of `kv_heads`.
        v: shape of `k`.
        causal: whether a position attends only to itself and earlier positions of its row.
        segment_ids: integers `[batch, time]`, one number for each document of a packed row: a position attends only
            within its segment. 0 marks padding, which is a segment, too: its results are finite and meaningless.

    Raises:
        TaskError: the shapes do not fit together.
        ShardingError: the positions or the heads do not divide over the devices that split the sequence.
    """
    _check(q, k, v, segment_ids)
    if (observer := _observer.get()) is not None:
        observer(q, k, causal, segment_ids)
    here = layout.current()
    if here.counts_flops:
        return reference.attend(q, k, v, causal=causal)
    if here.portable:
        return portable.attend(q, k, v, causal=causal, segment_ids=segment_ids)
    context = here.use("context")
    here.used.add(f"{layout.ATTENTION}{q.shape[1]},{q.shape[2]},{k.shape[2]},{int(causal)}")
    if here.mesh is None or here.mesh.size == 1:
        return kernels.attend(here.platform, q, k, v, causal=causal, segment_ids=segment_ids)
    if context > 1:
        split = {"ring": ring_attention, "all-to-all": all_to_all_attention}[here.context]
        return split(q, k, v, causal=causal, segment_ids=segment_ids)
    spec, segment_spec, parts = kernels.specs(here, q)
    k, v = (kernels.divide_heads(x, parts) for x in (k, v))
    if here.platform == "cpu":
        return blockwise.attention(q, k, v, causal=causal, segment_ids=segment_ids)

    def local(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
        return kernels.attend(here.platform, q, k, v, causal=causal, segment_ids=segment_ids)

    # XLA cannot partition a kernel, so each device calls it on its rows and heads.
    specs = (spec, spec, spec, segment_spec)
    return on_each_device(here, local, in_specs=specs, out_specs=spec)(q, k, v, segment_ids)


def _check(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None) -> None:
    """Raises TaskError for shapes that do not fit together."""
    batch, time, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    if k.shape != (batch, time, kv_heads, head_dim) or v.shape != k.shape:
        raise TaskError(
            f"attention: q is {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}. All are "
            f"[batch, time, heads, head_dim], and only the number of heads of q may differ."
        )
    if heads % kv_heads:
        raise TaskError(
            f"attention: {heads} heads are not a multiple of kv_heads = {kv_heads}. Each head of keys must serve the "
            f"same number of query heads."
        )
    if segment_ids is not None and segment_ids.shape != (batch, time):
        raise TaskError(f"attention: segment_ids are {list(segment_ids.shape)}, but must be {[batch, time]}.")
