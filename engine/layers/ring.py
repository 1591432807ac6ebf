"""Attention over a split sequence, with keys and values passed around a ring (Liu et al. 2023, Ring Attention).

In step r device i has the keys of device i - r; no device ever holds all keys. Arrays are grouped as in `blockwise.py`.
Zigzag order balances causal work (Llama Team 2024, The Llama 3 Herd of Models, section 3.3.2): of 2C chunks of the
sequence, device i of C has an early chunk, i, and a late chunk, 2C-1-i. In each step after the first, every device then
computes two unmasked pairs of chunks: late queries with early keys, and either early queries with early keys (if the
keys come from an earlier device) or late queries with late keys. `part.py` chooses the kernel.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from engine.base.errors import ShardingError
from engine.base.types import PyTree
from engine.layers import blockwise, kernels, part
from engine.layers.manual import on_each_device
from engine.parallel import layout

AXIS = "context"

type Keys = tuple[jax.Array, jax.Array, jax.Array | None]
"""Keys, values `[batch, kv_heads, time, head_dim]` and segments `[batch, time]`."""
type Attended = tuple[jax.Array, jax.Array]
"""Result and log-sum-exp, as `blockwise.forward` returns them."""
type Rows = tuple[jax.Array, jax.Array | None, blockwise.RowStatistics]
"""Queries, their segments, and their statistics, as `blockwise.backward` takes them."""
type Gradients = tuple[jax.Array, jax.Array, jax.Array]
"""Gradients of queries, keys and values."""
type _Saved = tuple[jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array, jax.Array]


def ring_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool, segment_ids: jax.Array | None
) -> jax.Array:
    """Returns attention as `attention.attention` does, for a layout that splits sequences over `context`.

    Raises:
        ShardingError: the positions are not divisible by the number of devices, or by twice that number if `causal`.
    """
    here = layout.current()
    _check(q.shape[1], here.size(AXIS), causal)
    spec, segment_spec, parts = kernels.specs(here, q, AXIS)

    local = functools.partial(attend_part, here.platform, causal=causal)
    specs = (spec, spec, spec, segment_spec)
    split = on_each_device(here, local, in_specs=specs, out_specs=spec, check_vma=here.platform == "cpu")
    k, v = (kernels.divide_heads(x, parts) for x in (k, v))
    return split(q, k, v, segment_ids)


def attend_part(
    platform: str, q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None, *, causal: bool
) -> jax.Array:
    """Returns the attention of one part of the positions, within a map over the axis `context` of two or more parts.

    Args as in `kernels.attend`, with the positions of this part.
    """
    if causal:
        q, k, v, segment_ids = jax.tree.map(_to_zigzag, (q, k, v, segment_ids))
    out = _ring(blockwise.group(q, k.shape[2]), blockwise.swap(k), blockwise.swap(v), segment_ids, causal, platform)
    out = blockwise.ungroup(out)
    return _from_zigzag(out) if causal else out


def _check(time: int, devices: int, causal: bool) -> None:
    """Raises ShardingError for a length that is not divisible."""
    chunks = 2 * devices if causal else devices
    if time % chunks:
        why = f"twice mesh axis context={devices}, since causal order gives each device two chunks"
        raise ShardingError(
            f"attention: {time} positions are not divisible by {chunks} "
            f"({why if causal else f'mesh axis context={devices}'}). Use a multiple of {chunks} "
            f"({-(-time // chunks) * chunks}), or mesh.context={math.gcd(time // 2 if causal else time, devices)}"
            f"{', or sharding.context=all-to-all' if causal and time % devices == 0 else ''}."
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _ring(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None, causal: bool, platform: str
) -> jax.Array:
    """Returns the grouped attention of the positions of this device to those of all devices."""
    return _ring_forward(q, k, v, segments, causal, platform)[0]


def _ring_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None, causal: bool, platform: str
) -> tuple[jax.Array, _Saved]:
    step = functools.partial(_causal_step if causal else _full_step, platform)
    devices = jax.lax.axis_size(AXIS)
    keys = _send((k, v, segments))  # in flight while the device attends to its own keys
    found = part.forward(part.kernel(platform, q, k), q, k, v, _both(segments, segments), causal=causal)

    def ring_step(carry: tuple[Attended, Keys], r: jax.Array) -> tuple[tuple[Attended, Keys], None]:
        found, keys = carry
        following = _send(keys)
        return (step(r, q, segments, keys, found), following), None

    (found, keys), _ = jax.lax.scan(ring_step, (found, keys), jnp.arange(1, devices - 1))
    out, lse = step(devices - 1, q, segments, keys, found)
    out = out.astype(q.dtype)
    return out, (q, k, v, segments, out, lse)


def _ring_backward(
    causal: bool, platform: str, saved: _Saved, d_out: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    """Returns the gradients. Those of keys and values travel one step behind and return to their device at the end."""
    q, k, v, segments, out, lse = saved
    step = functools.partial(_causal_grad if causal else _full_grad, platform)
    devices = jax.lax.axis_size(AXIS)
    statistics = blockwise.RowStatistics(lse, blockwise.delta(out, d_out), d_out)
    rows = (q, segments, statistics)
    keys = _send((k, v, segments))
    own = part.kernel(platform, q, k)
    dq, *d_keys = part.backward(own, q, k, v, _both(segments, segments), statistics, causal=causal)

    def add(
        r: int | jax.Array, keys: Keys, dq: jax.Array, d_keys: list[jax.Array]
    ) -> tuple[jax.Array, list[jax.Array]]:
        d_keys = _send(d_keys)
        dq_part, *d_keys_part = step(r, rows, keys)
        return dq + dq_part, [a + b for a, b in zip(d_keys, d_keys_part, strict=True)]

    def ring_step(carry: PyTree, r: jax.Array) -> tuple[PyTree, None]:
        keys, dq, d_keys = carry
        following = _send(keys)
        return (following, *add(r, keys, dq, d_keys)), None

    (keys, dq, d_keys), _ = jax.lax.scan(ring_step, (keys, dq, d_keys), jnp.arange(1, devices - 1))
    dq, d_keys = add(devices - 1, keys, dq, d_keys)
    dk, dv = _send(d_keys)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_ring.defvjp(_ring_forward, _ring_backward)


def _full_step(
    platform: str, r: int | jax.Array, q: jax.Array, segments: jax.Array | None, keys: Keys, found: Attended
) -> Attended:
    """Merges attention to the received keys into the result so far, without causal order."""
    k, v, k_segments = keys
    return _merge(found, _attend(platform, q, segments, k, v, k_segments))


def _full_grad(platform: str, r: int | jax.Array, rows: Rows, keys: Keys) -> Gradients:
    """Returns the gradients from the received keys, without causal order."""
    q, segments, statistics = rows
    k, v, k_segments = keys
    return part.backward(part.kernel(platform, q, k), q, k, v, _both(segments, k_segments), statistics, causal=False)


def _causal_step(
    platform: str, r: int | jax.Array, q: jax.Array, segments: jax.Array | None, keys: Keys, found: Attended
) -> Attended:
    """Merges attention to the keys of step r, which are in zigzag order, into the result so far."""
    early, late = zip(*(_halves(x, 3) for x in found), strict=True)
    q, q_segments, (k, v, k_segments) = _pairs(r, 3, q), _pairs(r, 1, segments), _key_pairs(r, keys)
    both = _attend(platform, q, q_segments, k, v, k_segments)
    first, second = zip(*(jnp.split(x, 2) for x in both), strict=True)
    pick = _picker(r)
    late = _merge(late, first)
    merged = _merge(pick(early, late), second)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=3), pick(merged, early), pick(late, merged))


def _causal_grad(platform: str, r: int | jax.Array, rows: Rows, keys: Keys) -> Gradients:
    """Returns the gradients from the keys of step r, for the same two pairs as in `_causal_step`."""
    q, segments, statistics = rows
    q = _pairs(r, 3, q)
    statistics = blockwise.RowStatistics(*(_pairs(r, 3, x) for x in statistics))
    k, v, k_segments = _key_pairs(r, keys)
    segments = _both(_pairs(r, 1, segments), k_segments)
    grads = part.backward(part.kernel(platform, q, k), q, k, v, segments, statistics, causal=False)
    (dq_first, dk_first, dv_first), second = zip(*(jnp.split(x, 2) for x in grads), strict=True)
    none = jax.tree.map(jnp.zeros_like, second)
    pick = _picker(r)
    (dq_early, dk_early, dv_early), (dq_late, dk_late, dv_late) = pick(second, none), pick(none, second)
    return (
        jnp.concatenate([dq_early, dq_first + dq_late], axis=3),
        jnp.concatenate([dk_first + dk_early, dk_late], axis=2),
        jnp.concatenate([dv_first + dv_early, dv_late], axis=2),
    )


def _attend(
    platform: str, q: jax.Array, q_segments: jax.Array | None, k: jax.Array, v: jax.Array, k_segments: jax.Array | None
) -> Attended:
    """Returns attention to received keys, which has no causal order."""
    return part.forward(part.kernel(platform, q, k), q, k, v, _both(q_segments, k_segments), causal=False)


def _both(q_segments: jax.Array | None, k_segments: jax.Array | None) -> blockwise.Segments:
    return None if q_segments is None or k_segments is None else (q_segments, k_segments)


def _pairs(r: int | jax.Array, axis: int, x: PyTree) -> PyTree:
    """Returns the part of `x` for the queries of both pairs of step r, as one batch `[2 * batch, ...]`, or None."""
    early, late = _halves(x, axis)
    return None if x is None else jnp.concatenate([late, _picker(r)(early, late)])


def _key_pairs(r: int | jax.Array, keys: Keys) -> list[PyTree]:
    """Returns the keys, values and segments of both pairs of step r, as one batch `[2 * batch, ...]` each."""
    pairs = []
    for x, axis in zip(keys, (2, 2, 1), strict=True):
        early, late = _halves(x, axis)
        pairs.append(None if x is None else jnp.concatenate([early, _picker(r)(early, late)]))
    return pairs


def _picker(r: int | jax.Array) -> Callable[[PyTree, PyTree], PyTree]:
    """Returns a function that picks one of two trees: the first if the keys of step r come from an earlier device."""
    earlier = r <= jax.lax.axis_index(AXIS)
    return lambda a, b: jax.tree.map(lambda x, y: jnp.where(earlier, x, y), a, b)


def _merge(a: Attended, b: Attended) -> Attended:
    """Returns the attention to the keys of both results."""
    (out_a, lse_a), (out_b, lse_b) = a, b
    top = jnp.maximum(lse_a, lse_b)
    weight_a, weight_b = jnp.exp(lse_a - top), jnp.exp(lse_b - top)
    total = weight_a + weight_b
    return (out_a * weight_a + out_b * weight_b) / total, top + jnp.log(total)


def _halves(x: PyTree, axis: int) -> tuple[PyTree, PyTree]:
    """Returns the early and the late half along an axis; (None, None) for None."""
    if x is None:
        return None, None
    early, late = jnp.split(x, 2, axis=axis)
    return early, late


def _send[T](tree: T) -> T:
    """Sends arrays to the next device of the ring and returns those of the previous device."""
    devices = jax.lax.axis_size(AXIS)
    return jax.lax.ppermute(tree, AXIS, [(i, (i + 1) % devices) for i in range(devices)])


def _routes() -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Returns the targets of the first and the second chunk of each device for zigzag order: two permutations."""
    devices = jax.lax.axis_size(AXIS)
    first, second = (
        [(i, min(chunk, 2 * devices - 1 - chunk)) for i, chunk in enumerate(range(start, 2 * devices, 2))]
        for start in (0, 1)
    )
    return first, second


def _to_zigzag(x: jax.Array) -> jax.Array:
    """Exchanges two neighbouring chunks of each device for its early and its late chunk, along axis 1."""
    even, odd = (jax.lax.ppermute(half, AXIS, route) for half, route in zip(_halves(x, 1), _routes(), strict=True))
    # Exactly one of chunks i and 2C-1-i is even: the early chunk on devices of even index.
    swapped = jax.lax.axis_index(AXIS) % 2 == 1
    return jnp.concatenate([jnp.where(swapped, odd, even), jnp.where(swapped, even, odd)], axis=1)


def _from_zigzag(x: jax.Array) -> jax.Array:
    """The inverse of `_to_zigzag`."""
    early, late = _halves(x, 1)
    swapped = jax.lax.axis_index(AXIS) % 2 == 1
    chunks = jnp.where(swapped, late, early), jnp.where(swapped, early, late)
    back = [[(b, a) for a, b in route] for route in _routes()]
    return jnp.concatenate([jax.lax.ppermute(x, AXIS, route) for x, route in zip(chunks, back, strict=True)], axis=1)
