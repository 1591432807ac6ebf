"""Cross-entropy over a vocabulary, without holding all logits of a large one.

Owns: the last product of a language model together with its loss. Does not own: the division by the number of tokens,
which the engine does over the whole batch.

Terms. *Chunk*: a part of the positions whose logits exist at one time; they are computed again for the gradient.
Positions are dealt out in turn (position t to chunk t mod n), so that those of each device stay where they are.
"""

import math

import jax
import jax.numpy as jnp

from engine.config.errors import TaskError
from engine.parallel import layout
from engine.tuning import products

LOGIT_BYTES = 256 * 2**20  # of the float32 logits that a device may hold at once


def cross_entropy(x: jax.Array, kernel: jax.Array, labels: jax.Array, *, chunks: int | None = None) -> jax.Array:
    """Returns -log p(label) `[batch, time]` float32, where p is the softmax of `x @ kernel`.

    Args:
        x: activations `[batch, time, features]`.
        kernel: `[features, vocabulary]`; may be split over the vocabulary.
        labels: ids `[batch, time]`.
        chunks: parts of the time dimension that are worked on one after the other; None takes as many as keep the
            logits of a device below LOGIT_BYTES.

    Raises:
        TaskError: `chunks` does not divide the positions of a device.
    """
    here = layout.current()
    batch, time, _ = x.shape
    own_time = time // here.size("context")
    if chunks is None:
        chunks = _chunks(batch, time, own_time, kernel.shape[-1])
    if own_time % chunks:
        raise TaskError(f"cross_entropy: chunks = {chunks} does not divide the {own_time} positions of a device.")
    if chunks == 1:
        return _losses(x, kernel, labels)

    def part(n: jax.Array) -> jax.Array:
        rows = x.reshape(batch, time // chunks, chunks, -1)
        return _losses(rows[:, :, n], kernel, labels.reshape(batch, time // chunks, chunks)[:, :, n])

    losses = jax.lax.map(jax.checkpoint(part), jnp.arange(chunks))  # [chunks, batch, time / chunks]
    return jnp.moveaxis(losses, 0, -1).reshape(batch, time)


def _chunks(batch: int, time: int, own_time: int, vocabulary: int) -> int:
    """The fewest chunks that keep the logits of a device small."""
    here = layout.current()
    spec = here.spec(("batch", "sequence", "vocab"), (batch, time, vocabulary))  # an axis splits one dimension only
    size = 4 * batch * time * vocabulary / math.prod(here.size(axis) for axis in jax.tree.leaves(tuple(spec)))
    return next(n for n in range(1, own_time + 1) if own_time % n == 0 and (size <= n * LOGIT_BYTES or n == own_time))


def _losses(x: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    """The losses `[batch, time]` with all logits of these positions."""
    here = layout.current()
    logits = here.constrain(products.logits(x, kernel), "batch", "sequence", "vocab")
    top = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    normaliser = jnp.log(jnp.exp(logits - top).sum(axis=-1)) + top[..., 0]
    # A sum over the chosen entry rather than a gather: each device sums its part of a split vocabulary.
    chosen = jnp.arange(logits.shape[-1]) == labels[..., None]
    return normaliser - jnp.where(chosen, logits, 0).sum(axis=-1)
