"""The models of `models.py` in hand-written JAX: `loss(model, params, state, batch)` for each.

`params` has the weights by name, `state` the averages of batch normalisation. Layers run in a scan over their stacked
weights. Attention is `jax.nn.dot_product_attention`, on a GPU that of cuDNN.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from benchmarks import bare
from benchmarks.accelerator.first_weights import factor, hashed
from benchmarks.accelerator.models import ONES, STACK, ZEROS, Cnn, Decoder, Model, Moe, Vit

type Arrays = Mapping[str, jax.Array]


def first_weight(name: str, shape: tuple[int, ...], deviation: float) -> jax.Array:
    """Returns the first values of a weight, float32."""
    if deviation in (ONES, ZEROS):
        return jnp.full(shape, deviation == ONES, jnp.float32)
    bits = hashed(jax.lax.iota(jnp.uint32, math.prod(shape)), name, jnp.uint32)
    uniform = (bits >> jnp.uint32(8)).astype(jnp.float32) * 2**-23 - 1
    return (uniform * factor(deviation)).reshape(shape)


def loss(model: Model, params: Arrays, state: Arrays, batch: Arrays) -> tuple[jax.Array, Arrays]:
    """Returns the loss of a batch and the new state."""
    if isinstance(model, Cnn):
        logits, state = bare.convolutions(dict(params), dict(state), batch["image"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean(), state
    dtype = jnp.dtype(model.precision)
    params = {name: x.astype(dtype) for name, x in params.items()}
    if isinstance(model, Vit):
        logits = vit(model, params, batch["image"]).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean(), state
    assert isinstance(model, Decoder)
    return decoder(model, params, batch["tokens"]), state


def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """RMSNorm."""
    y = x.astype(jnp.float32)
    return (y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + 1e-6) * scale.astype(jnp.float32)).astype(x.dtype)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """LayerNorm."""
    y = x.astype(jnp.float32)
    y = (y - y.mean(-1, keepdims=True)) * jax.lax.rsqrt(y.var(-1, keepdims=True) + 1e-6)
    return (y * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotary positions."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool) -> jax.Array:
    """Attention of `[batch, time, heads, head_dim]`."""
    cudnn = jax.default_backend() == "gpu" and q.dtype == jnp.bfloat16 and q.shape[1] % 2 == 0
    return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn" if cudnn else None)


def layers(params: Arrays) -> Arrays:
    """The stacked weights of the layers, by the rest of their name."""
    return {name.removeprefix(STACK): x for name, x in params.items() if name.startswith(STACK)}


def decoder(model: Decoder, params: Arrays, tokens: jax.Array) -> jax.Array:
    """The mean loss of tokens `[batch, time + 1]`."""
    head_dim = model.width // model.heads
    frequencies = 10_000.0 ** (-jnp.arange(0, head_dim, 2) / head_dim)
    angles = jnp.arange(model.time)[:, None] * frequencies
    cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]

    def layer(carry: tuple[jax.Array, jax.Array], w: Arrays) -> tuple[tuple[jax.Array, jax.Array], None]:
        x, penalty = carry
        heads = (*x.shape[:2], model.heads, head_dim)
        y = norm(x, w["norms/0/scale"])
        q, k, v = ((y @ w[f"attention/{name}/kernel"]).reshape(heads) for name in ("query", "key", "value"))
        y = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, causal=True)
        x = x + y.reshape(x.shape) @ w["attention/out/kernel"]
        y = norm(x, w["norms/1/scale"])
        if isinstance(model, Moe):
            y, added = experts(model, w, y)
            return (x + y, penalty + added), None
        gate, up, down = (w[f"feed_forward/{name}/kernel"] for name in ("gate", "up", "down"))
        return (x + (jax.nn.silu(y @ gate) * (y @ up)) @ down, penalty), None

    carry = (params["embed/table"][tokens[:, :-1]], jnp.zeros(()))
    (x, penalty), _ = jax.lax.scan(layer, carry, layers(params))
    x = norm(x, params["norm/scale"])
    logits = jnp.matmul(x, params["head/kernel"], preferred_element_type=jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return losses.mean() + penalty / losses.size


def experts(model: Moe, w: Arrays, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A mixture of experts by one-hot products (Lepikhin et al. 2021, GShard), and the penalty of its router."""
    time, count, top_k = x.shape[1], model.experts, model.top_k
    capacity = min(math.ceil(top_k * time / count * model.capacity_factor), time)
    router = w["feed_forward/router"].astype(jnp.float32)
    logits = jnp.matmul(x.astype(jnp.float32), router, precision="highest")
    probabilities = jax.nn.softmax(logits)
    best, chosen = jax.lax.top_k(probabilities, top_k)
    weights = best / best.sum(-1, keepdims=True)
    one_hot = jax.nn.one_hot(chosen, count)  # [batch, time, top_k, experts]
    by_rank = one_hot.swapaxes(1, 2).reshape(len(x), top_k * time, count)
    slot = ((jnp.cumsum(by_rank, axis=1) - 1) * by_rank).sum(-1).reshape(len(x), top_k, time).swapaxes(1, 2)
    slots = jax.nn.one_hot(slot, capacity)  # all zero beyond the capacity
    combine = jnp.einsum("btk,btke,btkc->btec", weights, one_hot, slots)
    dispatch = (combine > 0).astype(x.dtype)
    filled = jnp.einsum("btec,btd->ebcd", dispatch, x)
    gate, up = (jnp.einsum("ebcd,edf->ebcf", filled, w[f"feed_forward/{name}"]) for name in ("gate", "up"))
    y = jnp.einsum("ebcf,efd->ebcd", jax.nn.silu(gate) * up, w["feed_forward/down"])
    share, load = one_hot.sum((1, 2)) / top_k, probabilities.sum(1)
    balance = count * (share * load).sum() / time
    z = (jax.nn.logsumexp(logits, axis=-1) ** 2).sum()
    penalty = (0.01 * balance + 0.001 * z) / model.depth
    return jnp.einsum("btec,ebcd->btd", combine.astype(x.dtype), y), penalty


def vit(model: Vit, params: Arrays, images: jax.Array) -> jax.Array:
    """Logits of images `[batch, size, size]`."""
    side = model.size // model.patch
    x = images.astype(params["positions"].dtype).reshape(-1, side, model.patch, side, model.patch) / 127.5 - 1
    x = x.swapaxes(2, 3).reshape(len(images), side * side, -1)
    x = x @ params["embed/kernel"] + params["embed/bias"] + params["positions"]

    def layer(x: jax.Array, w: Arrays) -> tuple[jax.Array, None]:
        heads = (*x.shape[:2], model.heads, -1)
        y = layer_norm(x, w["norms/0/scale"], w["norms/0/bias"])
        q, k, v = ((y @ w[f"attention/project/{i}/kernel"]).reshape(heads) for i in range(3))
        x = x + attend(q, k, v, causal=False).reshape(x.shape) @ w["attention/out/kernel"]
        y = layer_norm(x, w["norms/1/scale"], w["norms/1/bias"])
        y = jax.nn.gelu(y @ w["up/kernel"] + w["up/bias"])
        return x + y @ w["down/kernel"] + w["down/bias"], None

    x, _ = jax.lax.scan(layer, x, layers(params))
    x = layer_norm(x, params["norm/scale"], params["norm/bias"]).mean(1)
    return x @ params["head/kernel"] + params["head/bias"]
