"""The decoder of `decoder.py` in hand-written JAX: a worker."""

import sys

import jax
import jax.numpy as jnp
import optax

from benchmarks.decoder_inputs import LEARNING_RATE, STACKED, WEIGHT_DECAY, Sizes, read
from benchmarks.worker import serve


def norm(x, scale):
    """RMSNorm."""
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale


def rotate(x, cos, sin):
    """Rotary positions."""
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def layer(x, w, cos, sin, sizes):
    """Attention and SwiGLU."""
    heads = (*x.shape[:2], sizes.heads, sizes.head_dim)
    y = norm(x, w["norm1"])
    q, k, v = ((y @ w[name]).reshape(heads) for name in ("query", "key", "value"))
    y = jax.nn.dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
    x = x + y.reshape(x.shape) @ w["out"]
    y = norm(x, w["norm2"])
    return x + (jax.nn.silu(y @ w["gate"]) * (y @ w["up"])) @ w["down"]


def loss(params, tokens, sizes: Sizes):
    """The mean loss of a batch of tokens `[batch, time + 1]`."""
    frequencies = 10_000.0 ** (-jnp.arange(0, sizes.head_dim, 2) / sizes.head_dim)
    angles = jnp.arange(sizes.time)[:, None] * frequencies
    cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
    x = params["embed"][tokens[:, :-1]]
    for w in params["layers"]:
        x = layer(x, w, cos, sin, sizes)
    logits = norm(x, params["norm"]) @ params["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def main():
    """Trains a turn at a time."""
    sizes, inputs = read(sys.argv[1])
    ones = jnp.ones(sizes.width)
    params = {
        "embed": jnp.asarray(inputs["embed"]),
        "head": jnp.asarray(inputs["head"]),
        "norm": ones,
        "layers": [
            {**{name: jnp.asarray(inputs[name][i]) for name in STACKED}, "norm1": ones, "norm2": ones}
            for i in range(sizes.depth)
        ],
    }
    params = jax.tree.map(jnp.copy, params)  # separate buffers, since the step donates them
    tx = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p))
    state, tokens, done = tx.init(params), inputs["tokens"], 0

    @jax.jit(donate_argnums=(0, 1))
    def step(params, state, tokens):
        value, grads = jax.value_and_grad(loss)(params, tokens, sizes)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    def turn(steps):
        nonlocal params, state, done
        losses = []
        for _ in range(steps):
            params, state, value = step(params, state, tokens[done * sizes.batch : (done + 1) * sizes.batch])
            losses.append(value)
            done += 1
        return [float(value) for value in losses]

    serve(turn)


if __name__ == "__main__":
    main()
