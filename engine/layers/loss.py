"""Cross-entropy over a vocabulary, together with the last product of a language model.

The logits of a large vocabulary are computed in chunks of positions and recomputed for the gradient. Position t belongs
to chunk t mod n, so that no position moves to another device. The kernel is gathered once for all chunks. Its gradient
is summed over them in float32, and after them over the devices. A stage of a pipeline is an exception
(`whole_weight.py`): XLA gathers the kernel, and sums its gradient in the dtype of the kernel.
"""

import math

import jax
import jax.numpy as jnp

from engine.base.errors import TaskError
from engine.config import hardware
from engine.layers.platforms import products
from engine.layers.whole_weight import with_whole_weights
from engine.parallel import layout

LOGIT_BYTES = 256 * 2**20  # limit for the float32 logits of a device
GPU_SHARE = 1 / 64  # of the memory of a GPU, if that is more: one chunk needs no second product in the backward pass


def cross_entropy(x: jax.Array, kernel: jax.Array, labels: jax.Array, *, chunks: int | None = None) -> jax.Array:
    """Returns -log p(label) `[batch, time]` float32, where p is the softmax of `x @ kernel`.

    It has no forward-mode derivative (`jax.jvp`) in chunks whose rows are split over devices, on several TPUs, nor in
    half precision on a GPU or TPU.

    Args:
        x: activations `[batch, time, features]`.
        kernel: `[features, vocabulary]`; may be split over the vocabulary.
        labels: ids `[batch, time]`.
        chunks: parts of the time dimension, computed in sequence; None uses the fewest that keep the logits of a device
            below a limit (`_logit_bytes`).

    Raises:
        TaskError: `chunks` does not divide the positions of a device.
    """
    here = layout.current()
    batch, time, _ = x.shape
    own_time = time // here.size("context")
    if chunks is None:
        chunks = _chunks(batch, time, own_time, kernel.shape[-1])
    if own_time % chunks:
        raise TaskError(
            f"cross_entropy: chunks = {chunks} does not divide the {own_time} positions of a device. Use a divisor, or "
            "None."
        )
    if here.counts_flops or (chunks == 1 and here.platform != "tpu"):
        return _losses(x, kernel, labels)

    def in_chunks(x: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
        if chunks == 1:
            return _losses(x, kernel, labels)
        rounded = products.round_once(x, kernel)
        rows = x.reshape(len(x), time // chunks, chunks, -1)
        chosen = labels.reshape(len(x), time // chunks, chunks)

        @jax.checkpoint
        def part(n: jax.Array) -> jax.Array:
            return _losses(rows[:, :, n], kernel, chosen[:, :, n], rounded)

        losses = jax.lax.map(part, jnp.arange(chunks))  # [chunks, batch, time / chunks]
        return jnp.moveaxis(losses, 0, -1).reshape(len(x), time)

    return with_whole_weights(in_chunks, x, (kernel,), (("embed", "vocab"),), labels, wide=True)


def _chunks(batch: int, time: int, own_time: int, vocabulary: int) -> int:
    """Returns the fewest chunks that keep the logits of a device below the limit."""
    here = layout.current()
    spec = here.spec(("batch", "sequence", "vocab"), (batch, time, vocabulary))  # uses each mesh axis once
    size = 4 * batch * time * vocabulary / math.prod(here.size(axis) for axis in jax.tree.leaves(tuple(spec)))
    most = _logit_bytes()
    return next(n for n in range(1, own_time + 1) if own_time % n == 0 and (size <= n * most or n == own_time))


def _logit_bytes() -> float:
    """Returns the limit for the float32 logits of a device.

    On 8 H100, four chunks of a decoder with 1.16 B parameters take 2.2 of 95.5 ms longer than one, by roofline.
    """
    here = layout.current()
    if here.platform != "gpu" or here.mesh is None:
        return LOGIT_BYTES
    found = hardware.find(here.mesh.devices.flat[0].device_kind)
    return LOGIT_BYTES if found is None else max(LOGIT_BYTES, GPU_SHARE * found.hbm_bytes)


def _losses(x: jax.Array, kernel: jax.Array, labels: jax.Array, rounded: jax.Array | None = None) -> jax.Array:
    """Returns the losses `[batch, time]` with all logits of these positions in memory."""
    logits = products.logits(x, kernel, rounded)  # [batch, time, vocabulary]
    logits = layout.constrain(logits, "batch", "sequence", "vocab")
    top = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    normaliser = jnp.log(jnp.exp(logits - top).sum(axis=-1)) + top[..., 0]
    # A masked sum instead of a gather, so that each device sums its part of a split vocabulary.
    chosen = jnp.arange(logits.shape[-1]) == labels[..., None]
    return normaliser - jnp.where(chosen, logits, 0).sum(axis=-1)
