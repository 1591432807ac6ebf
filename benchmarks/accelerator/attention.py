"""Row `attention`: each implementation of attention against float32 on the CPU.

Ring and all-to-all attention need several devices. On one device, `jax.vmap` with the name of the mesh axis takes the
place of the devices, so that the same kernels and collectives are computed.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator.compare import Case, Floats, Integers, compare, noise, with_gradients
from benchmarks.accelerator.context import Context
from engine.layers import all_to_all, ring
from engine.layers.dot_product_attention import attention

PARTS = 4
"""Parts of the sequence in ring and all-to-all attention on one device."""


def run(context: Context) -> None:
    """Compares all implementations."""
    compare(context, cases(context.tiny, context.machine.platform, context.machine.devices))


def cases(tiny: bool, platform: str, devices: int) -> list[Case]:
    """Returns the cases for a platform and a number of devices."""
    time = 32 if tiny else 1024
    make = functools.partial(_case, 2, time, 4 if tiny else 8, 4 if tiny else 8, 16 if tiny else 64)
    found = [
        make("causal", causal=True),
        make("full, segments", causal=False, segmented=True),
        make("causal, float32", causal=True, dtype="float32"),
        make("causal, grouped queries, segments", causal=True, kv_heads=2, segmented=True),
        make("causal, odd length", causal=True, time=time - 1),
    ]
    if not tiny:  # one kernel serves all of them on a CPU
        found += [
            make("full", causal=False),
            make("causal, segments", causal=True, segmented=True),
            make("causal, grouped queries", causal=True, kv_heads=2),
            make("causal, heads of 128", causal=True, head_dim=128),
            make("full, odd length of 49 patches", causal=False, time=49),
            make("causal, odd length, segments", causal=True, time=time - 1, segmented=True),
        ]
    for name, module in (("ring", ring), ("all-to-all", all_to_all)):
        part = functools.partial(module.attend_part, platform)
        for segmented in (True,) if tiny else (False, True):
            title = f"causal, {name} of {PARTS} parts{', segments' if segmented else ''}"
            found.append(make(title, causal=True, kv_heads=2, segmented=segmented, part=part))
        if devices > 1:
            context = 4 if devices % 4 == 0 else 2 if devices % 2 == 0 else devices
            mesh, layout = {"context": context}, {"context": name}
            found.append(make(f"causal, {name} on {context} devices", causal=True, mesh=mesh, layout=layout))
    return found


def _case(
    batch: int,
    time_: int,
    heads: int,
    kv_heads_: int,
    head_dim_: int,
    name: str,
    *,
    causal: bool,
    time: int | None = None,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    segmented: bool = False,
    part: Callable[..., jax.Array] | None = None,
    **settings: Any,
) -> Case:
    """Returns the case of an attention; `part` computes the attention of one part of the positions."""
    time, kv_heads, head_dim = time or time_, kv_heads or kv_heads_, head_dim or head_dim_
    shapes = {"q": heads, "k": kv_heads, "v": kv_heads}
    floats = {key: noise((batch, time, count, head_dim), key) for key, count in shapes.items()}
    integers = {"segment_ids": segments(batch, time)} if segmented else {}

    def function(floats: Floats, integers: Integers) -> jax.Array:
        return attention(floats["q"], floats["k"], floats["v"], causal=causal, segment_ids=integers.get("segment_ids"))

    gradients = None if part is None else functools.partial(_in_parts, functools.partial(part, causal=causal))
    reference = f"{time} {kv_heads} {head_dim} {causal} {segmented}"
    settings |= {"reference": reference, "with_gradients": gradients, "kernel": True}
    return Case(name, function, floats, integers, **settings)


def segments(batch: int, time: int) -> np.ndarray:
    """Returns segment ids of three documents a row, the last of which is padding."""
    ends = np.random.default_rng(0).integers(1, time, (2, batch, 1))
    position = np.arange(time)[None]
    early, late = ends.min(0), ends.max(0)
    return np.where(position < early, 1, np.where(position < late, 2, 0)).astype(np.int32)


def _in_parts(
    part: Callable[..., jax.Array], floats: Floats, integers: Integers, d_out: jax.Array
) -> tuple[jax.Array, Floats]:
    """Returns the attention and its gradients, with the sequence in PARTS parts on one device."""

    def one(floats: Floats, integers: Integers, d_out: jax.Array) -> tuple[jax.Array, Floats]:
        return with_gradients(lambda f, i: part(f["q"], f["k"], f["v"], i.get("segment_ids")), floats, integers, d_out)

    def split(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(x.shape[0], PARTS, -1, *x.shape[2:]), 1, 0)

    def join(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(x.shape[0], -1, *x.shape[3:])

    parts = jax.tree.map(split, (floats, integers, d_out))
    return jax.tree.map(join, jax.vmap(one, axis_name=ring.AXIS)(*parts))
