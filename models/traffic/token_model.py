"""A causal transformer over the motion tokens of all agents of a scene (SMART, Wu et al. 2024, arXiv:2405.15677).

Each layer attends to the earlier steps of the agent (the attention of the decoder), to the agents of the scene at the
same step (that of the forecaster), and to the pieces of lanes near the agent. All relations are in the frame of the
agent, so a moved or rotated scene has the same probabilities. As in MotionLM (Seff et al. 2023, arXiv:2309.16534), the
next tokens of all agents are independent of each other, given all tokens so far.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from engine import layers

from ..attention import SocialBlock, attend, only
from ..decoder import Attention, SwiGLU
from .movements import in_frame, movement
from .road_safety import nearest, to_line
from .scenes import KINDS, LIGHTS, TYPES

RELATION, PIECE = 12, 29  # features of another agent, and of a piece of a lane
LOOK_AHEAD = 8.0  # metres; an agent sees the pieces that are nearest to a point so far ahead of it


class TemporalAttention(Attention):
    """The causal attention of the decoder, which also continues a sequence by one step."""

    def extend(self, x, angles, segments, cache, step):
        """Returns `[rows, 1, width]` for the next step, and the cache with its key and value.

        Args:
            x: `[rows, 1, width]`.
            angles: rotary angles of the step.
            segments: segments of all steps, `[rows, steps]`.
            cache: keys and values of all steps, each `[rows, steps, heads, head_dim]`.
            step: number of the step.
        """
        q, k, v = (
            project(x).reshape(x.shape[0], 1, -1, self.head_dim) for project in (self.query, self.key, self.value)
        )
        new = layers.rotate(k, angles), v
        k, v = (jax.lax.dynamic_update_slice_in_dim(old, x, step, 1) for old, x in zip(cache, new, strict=True))
        seen = (jnp.arange(k.shape[1]) <= step) & (segments == segments[:, step, None])
        found, _ = attend(layers.rotate(q, angles), k, v, only(seen[:, None, None]))
        return self.out(found.reshape(x.shape)), (k, v)


class LaneAttention(nnx.Module):
    """Attention to the pieces of lanes around an agent, whose features are both keys and values of all heads."""

    def __init__(self, width: int, heads: int, features: int, rngs: nnx.Rngs):
        self.heads = heads
        self.query = layers.Dense(width, heads * features, axes=("embed", "heads"), rngs=rngs)
        self.out = layers.Dense(heads * features, width, axes=("heads", "embed"), rngs=rngs)

    def __call__(self, x, pieces, near):
        """Returns `[..., width]` for `x` of that shape, pieces `[..., pieces, features]` and a mask of them."""
        q = self.query(x).reshape(*x.shape[:-1], self.heads, -1)
        scores = jnp.einsum("...hf,...kf->...hk", q, pieces) / pieces.shape[-1] ** 0.5
        weights = jax.nn.softmax(jnp.where(near[..., None, :], scores, -1e9), axis=-1)
        return self.out(jnp.einsum("...hk,...kf->...hf", weights, pieces).reshape(*x.shape[:-1], -1))


class Block(nnx.Module):
    """One layer: time, lanes, other agents, and a feed-forward part."""

    def __init__(self, config, rngs: nnx.Rngs):
        width, heads = config.width, config.heads
        self.norms = nnx.List([layers.RMSNorm(width) for _ in range(3)])
        self.time = TemporalAttention(width, heads, heads, rngs)
        self.lanes = LaneAttention(width, heads, width, rngs)
        self.agents = SocialBlock(width, heads, 32, rngs)
        self.feed_forward = SwiGLU(width, 2 * width, rngs)

    def __call__(self, x, over_time, pieces, relations, together):
        """Returns `[batch, agents, steps, width]` for `x` of that shape, and the cache.

        Args:
            x: a token for each step of each agent.
            over_time: function that applies `self.time` to an input, and returns the result and a cache.
            pieces: features `[batch, agents, steps, pieces, width]`, and a mask.
            relations: `[batch * steps, agents, agents, 32]`.
            together: bool `[batch * steps, agents, agents]`, which agents are in the scene at the same time.
        """
        seen, cache = over_time(self.time, self.norms[0](x))
        x = x + seen
        x = x + self.lanes(self.norms[1](x), *pieces)
        y = jnp.swapaxes(x, 1, 2)  # [batch, steps, agents, width]
        y = self.agents(y.reshape(-1, *y.shape[2:]), relations, together).reshape(y.shape)
        x = jnp.swapaxes(y, 1, 2)
        rows = self.norms[2](x).reshape(x.shape[0], -1, x.shape[-1])  # the feed-forward part splits three dimensions
        return x + self.feed_forward(rows).reshape(x.shape), cache


class Vocabulary(nnx.Variable):
    """The movements of the tokens, which are not trained. A checkpoint has them: they give its weights a meaning."""


class TokenModel(nnx.Module):
    """Embeds tokens and agents, applies the layers, and gives the activations whose product with `head` are logits.

    Features are computed in the precision of the poses, and the layers in that of the parameters.
    """

    def __init__(self, config, movements: np.ndarray, rngs: nnx.Rngs):
        width, tokens = config.width, len(movements)
        self.movements = Vocabulary(jnp.asarray(movements))
        self.nearest, self.head_dim = config.nearest, width // config.heads
        init = nnx.initializers.normal(0.02)(rngs.params(), (tokens + 1, width))
        self.embed = nnx.Param(init, logical_axes=(None, "embed"))  # with a row for no token, which a mesh cannot split
        self.agent = layers.Dense(5 + len(TYPES), width, axes=(None, "embed"), bias=True, rngs=rngs)
        self.relate = layers.Dense(RELATION, 32, axes=(None, None), bias=True, rngs=rngs)
        self.piece = nnx.List(
            [layers.Dense(size, width, axes=(None, "embed"), bias=True, rngs=rngs) for size in (PIECE, width)]
        )
        self.blocks = nnx.List([Block(config, rngs) for _ in range(config.depth)])
        self.norm = layers.RMSNorm(width)
        self.head = layers.Dense(width, tokens, axes=("embed", "vocab"), quantized=False, rngs=rngs)

    def __call__(self, scene, pose, moved, motion, step=0, caches=None):
        """Returns activations `[batch, agents, steps, width]`, and caches.

        Args:
            scene: agents and lanes, and `valid` and `light` of all steps.
            pose: `[batch, agents, steps, 3]`.
            moved: the token that led to each pose, `[batch, agents, steps]`.
            motion: the movement of this token, `[batch, agents, steps, 3]`.
            step: number of the first step of `pose`.
            caches: keys and values of each layer. With caches, `pose` is one step, which continues those before it.
        """
        count = pose.shape[2]
        valid, light = (jax.lax.dynamic_slice_in_dim(scene[name], step, count, 2) for name in ("valid", "light"))
        agent = jnp.concatenate([scene["size"] / 5, jax.nn.one_hot(scene["type"], len(TYPES))], -1)
        agent = jnp.broadcast_to(agent[:, :, None], (*pose.shape[:3], agent.shape[-1]))
        embedded = layers.constrain(self.embed.get_value(), None, None)[moved]
        x = embedded + self.agent(self._cast(jnp.concatenate([agent, motion], -1)))
        pieces = self._pieces(scene, pose, light)
        relations, together = self._relations(scene["size"], pose, motion, valid)
        segments = scene["valid"].reshape(-1, scene["valid"].shape[2]).astype(jnp.int32)
        angles = layers.rotary_angles(jnp.broadcast_to(step + jnp.arange(count), (len(segments), count)), self.head_dim)

        def over_time(attention, x, cache):
            rows = x.reshape(-1, *x.shape[2:])
            if cache is None:
                return attention(rows, angles, segments[:, :count]).reshape(x.shape), None
            found, cache = attention.extend(rows, angles, segments, cache, step)
            return found.reshape(x.shape), cache

        updated = []
        for block, cache in zip(self.blocks, caches or [None] * len(self.blocks), strict=True):
            x, cache = block(x, functools.partial(over_time, cache=cache), pieces, relations, together)
            updated.append(cache)
        return self.norm(x), updated

    def motion(self, tokens):
        """Returns the movements `[..., 3]` of tokens `[...]`; 0 for the number of tokens, which stands for none."""
        return jnp.pad(self.movements[...], ((0, 1), (0, 0)))[tokens]

    def empty_caches(self, agents: int, steps: int):
        """Returns caches for a number of agents and steps."""
        shape = (agents, steps, self.blocks[0].time.key.kernel.shape[1] // self.head_dim, self.head_dim)
        zeros = jnp.zeros(shape, self.head.kernel.dtype)
        return [(zeros, zeros) for _ in self.blocks]

    def _cast(self, features):
        """Returns features in the precision of the parameters."""
        return features.astype(self.head.kernel.dtype)

    def _pieces(self, scene, pose, light):
        """Returns features of the pieces near each agent at each step, `[batch, agents, steps, pieces, width]`.

        The second result is a mask of them.
        """
        points = scene["points"]  # [batch, pieces, POINTS, 2]
        ahead = pose[..., :2] + LOOK_AHEAD * jnp.stack([jnp.cos(pose[..., 2]), jnp.sin(pose[..., 2])], -1)
        ends = points[:, None, None, :, :: points.shape[2] - 1]  # [batch, 1, 1, pieces, 2, 2]
        offset, _ = to_line(ahead[..., None, :], ends)
        distance = jnp.where(scene["mask"][:, None, None], jnp.hypot(offset[..., 0], offset[..., 1]), jnp.inf)
        far, index = jax.lax.top_k(-distance, min(self.nearest, distance.shape[-1]))
        found = jax.vmap(lambda values, index: values[index])(points, index)  # [batch, agents, steps, near, POINTS, 2]
        about = jnp.concatenate(
            [
                jax.nn.one_hot(scene["kind"], len(KINDS)),
                scene["width"][..., None] / 5,
                scene["limit"][..., None] / 20,
            ],
            -1,
        )
        about = jax.vmap(lambda values, index: values[index])(about, index)
        state = jnp.take_along_axis(jnp.swapaxes(light, 1, 2)[:, None], index, axis=-1)

        segments = jnp.stack([found[..., :-1, :], found[..., 1:, :]], -2)
        offset, heading = nearest(pose[..., None, :2], segments)
        x, y = in_frame(offset, pose[..., None, 2])
        turn = heading - pose[..., None, 2]
        length = jnp.hypot(x, y) + 1e-3
        path = in_frame(found - pose[..., None, None, :2], pose[..., None, None, 2])
        features = [x / 20, y / 20, x / (1 + length), y / (1 + length), jnp.exp(-length / 5), jnp.cos(turn)]
        features += [jnp.sin(turn), jnp.tanh(y), jnp.tanh(5 * jnp.sin(turn))]  # the last two show small errors
        features = jnp.stack(features, -1)
        features = [features, *(values / 20 for values in path), about, jax.nn.one_hot(state, len(LIGHTS) + 1)]
        features = self._cast(jnp.concatenate(features, -1))
        return self.piece[1](nnx.gelu(self.piece[0](features))), far > -jnp.inf

    def _relations(self, size, pose, motion, valid):
        """Returns features of all pairs of agents at each step, and which agents are valid at the same time."""
        there, motion = jnp.swapaxes(pose, 1, 2), jnp.swapaxes(motion, 1, 2)  # [batch, steps, agents, 3]
        here = jnp.swapaxes(valid, 1, 2).reshape(-1, valid.shape[1])
        x, y, turn = jnp.moveaxis(movement(there[:, :, :, None], there[:, :, None]), -1, 0)
        other = in_frame(motion[:, :, None, :, :2], -turn)  # its movement, in the frame of the first agent
        faster = [step - motion[:, :, :, None, k] for k, step in enumerate(other)]
        distance = jnp.hypot(x, y) + 1e-3
        length, width = (jnp.broadcast_to(size[:, None, None, :, k], x.shape) for k in (0, 1))
        features = [x / 20, y / 20, x / (1 + distance), y / (1 + distance), jnp.exp(-distance / 5)]
        features += [jnp.exp(-distance / 20), jnp.cos(turn), jnp.sin(turn), length / 5, width / 2, *faster]
        pairs = jnp.stack(features, -1).reshape(-1, *x.shape[2:], RELATION)
        return nnx.gelu(self.relate(self._cast(pairs))), here[:, :, None] & here[:, None]
