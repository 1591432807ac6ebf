"""Attention over a split sequence by all-to-all (Jacobs et al. 2023, DeepSpeed Ulysses).

Each device holds a part of the positions of all heads. An all-to-all gives it all positions of a part of the heads; it
attends with the kernel of its platform, and a second all-to-all returns the result. Compared with the ring this sends
fewer and larger messages and works with any kernel, but it cannot use more devices than heads.
"""

import functools
import math

import jax

from engine.base.errors import ShardingError
from engine.layers import kernels
from engine.layers.manual import on_each_device
from engine.parallel import layout


def all_to_all_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool, segment_ids: jax.Array | None
) -> jax.Array:
    """Returns attention as `attention.attention` does, for a layout that splits sequences over `context`.

    Raises:
        ShardingError: the positions, or the heads of a device, do not divide over `context`.
    """
    here = layout.current()
    spec, segment_spec, parts = kernels.specs(here, q, "context")
    _check(here, q, parts)

    local = functools.partial(attend_part, here.platform, causal=causal)
    specs = (spec, spec, spec, segment_spec)
    split = on_each_device(here, local, in_specs=specs, out_specs=spec, check_vma=here.platform == "cpu")
    k, v = (kernels.divide_heads(x, parts) for x in (k, v))
    return split(q, k, v, segment_ids)


def attend_part(
    platform: str, q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None, *, causal: bool
) -> jax.Array:
    """Returns the attention of one part of the positions, within a map over the axis `context`.

    Args as in `kernels.attend`, with the positions of this part.
    """
    k, v = (kernels.divide_heads(x, jax.lax.axis_size("context")) for x in (k, v))
    q, k, v = (_exchange(x, split=2, join=1) for x in (q, k, v))
    if segment_ids is not None:
        segment_ids = jax.lax.all_gather(segment_ids, "context", axis=1, tiled=True)
    out = kernels.attend(platform, q, k, v, causal=causal, segment_ids=segment_ids)
    return _exchange(out, split=1, join=2)


def _exchange(x: jax.Array, split: int, join: int) -> jax.Array:
    """Returns `x` with dimension `split` split over `context` and dimension `join`, which was split, joined."""
    return jax.lax.all_to_all(x, "context", split_axis=split, concat_axis=join, tiled=True)


def _check(here: layout.Layout, q: jax.Array, parts: int) -> None:
    """Raises ShardingError for sizes that do not divide."""
    _, time, heads, _ = q.shape
    devices = here.size("context")
    if time % devices:
        raise ShardingError(
            f"attention: {time} positions are not divisible by mesh axis context={devices}. Use a multiple of "
            f"{devices} ({-(-time // devices) * devices}), or mesh.context={math.gcd(time, devices)}."
        )
    if heads // parts % devices:
        text, whole = f"context={devices}", parts * devices
        if parts > 1:
            text += f" times the {parts} parts into which sharding.rules split the heads"
        raise ShardingError(
            f"attention: {heads} heads are not divisible by {text}, which sharding.context=all-to-all needs. Use a "
            f"multiple of {whole} ({-(-heads // whole) * whole}), mesh.context={math.gcd(heads // parts, devices)}, or "
            f"sharding.context=ring."
        )
