"""The decoder of `decoder.py` in plain JAX, as one writes it by hand: a worker."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.worker import serve

WIDTH, HIDDEN, DEPTH, HEADS, TIME, BATCH, VOCABULARY = 256, 1024, 4, 8, 256, 8, 512
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.01
HEAD_DIM = WIDTH // HEADS


def norm(x, scale):
    """RMSNorm."""
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale


def rotate(x, cos, sin):
    """Rotary positions."""
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def layer(x, w, cos, sin):
    """Attention and SwiGLU."""
    y = norm(x, w["norm1"])
    q, k, v = ((y @ w[name]).reshape(BATCH, TIME, HEADS, HEAD_DIM) for name in ("query", "key", "value"))
    y = jax.nn.dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
    x = x + y.reshape(BATCH, TIME, WIDTH) @ w["out"]
    y = norm(x, w["norm2"])
    return x + (jax.nn.silu(y @ w["gate"]) * (y @ w["up"])) @ w["down"]


def loss(params, tokens):
    """The mean loss of a batch of tokens `[batch, time + 1]`."""
    frequencies = 10_000.0 ** (-jnp.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angles = jnp.arange(TIME)[:, None] * frequencies
    cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
    x = params["embed"][tokens[:, :-1]]
    for w in params["layers"]:
        x = layer(x, w, cos, sin)
    logits = norm(x, params["norm"]) @ params["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def main():
    """Trains a turn at a time."""
    inputs = np.load(sys.argv[1])
    stacked = ("query", "key", "value", "out", "gate", "up", "down")
    depth = len(inputs["query"])
    ones = jnp.ones(WIDTH)
    params = {
        "embed": jnp.asarray(inputs["embed"]),
        "head": jnp.asarray(inputs["head"]),
        "norm": ones,
        "layers": [
            {**{name: jnp.asarray(inputs[name][i]) for name in stacked}, "norm1": ones, "norm2": ones}
            for i in range(depth)
        ],
    }
    params = jax.tree.map(jnp.copy, params)  # each leaf its own, since the step gives them away
    tx = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p))
    state, tokens, done = tx.init(params), inputs["tokens"], 0

    @jax.jit(donate_argnums=(0, 1))
    def step(params, state, tokens):
        value, grads = jax.value_and_grad(loss)(params, tokens)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    def turn(steps):
        nonlocal params, state, done
        losses = []
        for _ in range(steps):
            params, state, value = step(params, state, tokens[done * BATCH : (done + 1) * BATCH])
            losses.append(value)
            done += 1
        return [float(value) for value in losses]

    serve(turn)


if __name__ == "__main__":
    main()
