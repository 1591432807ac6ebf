"""Parts of attention that several models share."""

import jax
import jax.numpy as jnp
from flax import nnx

from engine import layers


def whole_rows(y):
    """Returns the result of a norm with its positions split as within a layer.

    The first constraint gathers the result, and not the float32 values of which it is computed.
    """
    return layers.constrain(layers.constrain(y, "batch", "tokens", None), "batch", "sequence", None)


def attend(q, k, v, bias: jax.typing.ArrayLike = 0.0):
    """Returns what queries find, `[..., queries, heads, head_dim]`, and the weights `[..., heads, queries, keys]`.

    `engine.layers.attention` has neither a bias nor weights. Use this function for few tokens.

    Args:
        q: queries, `[..., queries, heads, head_dim]`.
        k: keys, `[..., keys, heads, head_dim]`.
        v: values, of the shape of the keys.
        bias: added to the scores `[..., heads, queries, keys]`.
    """
    scores = jnp.einsum("...qhd,...khd->...hqk", q, k).astype(jnp.float32) / q.shape[-1] ** 0.5 + bias
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("...hqk,...khd->...qhd", weights, v), weights


def only(mask):
    """Returns the bias with which queries attend only where the mask is true."""
    return jnp.where(mask, 0.0, -1e9)


class Attention(nnx.Module):
    """Multi-head attention over the second to last dimension, with a bias of the scores."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.project = nnx.List([layers.Dense(width, width, axes=("embed", "heads"), rngs=rngs) for _ in range(3)])
        self.out = layers.Dense(width, width, axes=("heads", "embed"), rngs=rngs)

    def __call__(self, x, bias: jax.typing.ArrayLike = 0.0):
        """Returns `[..., tokens, width]` and the weights `[..., heads, tokens, tokens]`."""
        q, k, v = (project(x).reshape(*x.shape[:-1], self.heads, -1) for project in self.project)
        found, weights = attend(q, k, v, bias)
        return self.out(found.reshape(x.shape)), weights


class FeedForward(nnx.Module):
    """Two dense layers with pre-normalisation and a residual connection."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.up = layers.Dense(width, 2 * width, axes=("embed", "mlp"), bias=True, rngs=rngs)
        self.down = layers.Dense(2 * width, width, axes=("mlp", "embed"), bias=True, rngs=rngs)

    def __call__(self, x):
        return x + self.down(nnx.gelu(self.up(self.norm(x))))


class SocialBlock(nnx.Module):
    """Attention among the agents of a scene, which knows where each agent sees the others."""

    def __init__(self, width: int, heads: int, relation: int, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.attention = Attention(width, heads, rngs)
        self.score = layers.Dense(relation, heads, axes=(None, None), rngs=rngs)
        self.value = layers.Dense(heads * relation, width, axes=(None, "embed"), rngs=rngs)
        self.feed_forward = FeedForward(width, rngs)

    def __call__(self, x, relations, same_scene):
        """Returns `[batch, agents, width]` for `x` of that shape.

        Args:
            x: one token for each agent.
            relations: `[batch, agents, agents, relation]`, what an agent sees of another.
            same_scene: bool `[batch, agents, agents]`.
        """
        bias = jnp.where(same_scene[:, None], jnp.moveaxis(self.score(relations), -1, 1), -1e9)
        found, weights = self.attention(self.norm(x), bias)
        seen = jnp.einsum("bhqk,bqkr->bqhr", weights, relations).reshape(*x.shape[:2], -1)
        return self.feed_forward(x + found + self.value(seen))
