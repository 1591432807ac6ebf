"""Generated scenes with 3 to 300 agents, and a set model that predicts the next step of each agent.

Agents move by their own velocity, the wind of the scene, and a pull to the centre of all agents. A model that does not
see the other agents cannot know the pull.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import nnx

from engine import Loss, Mean, Task, layers


class Scenes:
    """A source of scenes: ragged `agents` and `step`, and `wind` of the whole scene.

    `agents` is float32 `[agents, 4]`, position and velocity; `step` is float32 `[agents, 2]`, the next movement; `wind`
    is float32 `[2]`. Each scene depends on the seed and its index only. The number of agents is log-normal.
    """

    def __init__(self, count: int = 2000, seed: int = 0, median: int = 15, most: int = 300):
        self.seed = seed
        sizes = np.random.default_rng(seed).lognormal(np.log(median), 1.0, count)
        self.sizes = np.clip(sizes.round().astype(np.int64), 3, most)

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        rng = np.random.default_rng([self.seed, index])
        agents = rng.normal(size=(self.sizes[index], 4)).astype(np.float32) + rng.normal(size=4).astype(np.float32)
        wind = rng.normal(size=2).astype(np.float32)
        position, velocity = agents[:, :2], agents[:, 2:]
        return {"agents": agents, "step": velocity + wind + 0.5 * (position.mean(0) - position), "wind": wind}

    def lengths(self):
        """Returns the number of agents of each scene, so that the engine need not read them all."""
        return self.sizes


class Block(nnx.Module):
    """Attention among the agents of a scene, and a feed-forward part, each with a residual connection."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.project = nnx.List([layers.Dense(width, width, axes=("embed", "heads"), rngs=rngs) for _ in range(3)])
        self.out = layers.Dense(width, width, axes=("heads", "embed"), rngs=rngs)
        self.up = layers.Dense(width, 2 * width, axes=("embed", "mlp"), bias=True, rngs=rngs)
        self.down = layers.Dense(2 * width, width, axes=("mlp", "embed"), bias=True, rngs=rngs)

    def __call__(self, x, segment_ids):
        """Returns `[batch, agents, width]` for `x` of that shape."""
        y = self.norms[0](x)
        q, k, v = (project(y).reshape(*x.shape[:2], self.heads, -1) for project in self.project)
        x = x + self.out(layers.attention(q, k, v, causal=False, segment_ids=segment_ids).reshape(x.shape))
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


class SetModel(nnx.Module):
    """Attention blocks over the agents of each scene, in any order of the agents."""

    def __init__(self, width: int, depth: int, heads: int, rngs: nnx.Rngs):
        self.embed = layers.Dense(6, width, axes=(None, "embed"), bias=True, rngs=rngs)
        self.blocks = nnx.List([Block(width, heads, rngs) for _ in range(depth)])
        self.head = layers.Dense(width, 2, axes=("embed", None), bias=True, rngs=rngs)

    def __call__(self, agents, wind, segment_ids):
        """Returns steps `[batch, agents, 2]`; `wind` is `[batch, agents, 2]`, too."""
        x = self.embed(jnp.concatenate([agents, wind], axis=-1))
        for block in self.blocks:
            x = block(x, segment_ids)
        return self.head(x)


@dataclasses.dataclass
class NextStep(Task):
    """Predicts the next step of every agent from padded, bucketed or packed scenes."""

    width: int = 32
    depth: int = 2
    heads: int = 2

    def build(self, rngs):
        return SetModel(self.width, self.depth, self.heads, rngs)

    def loss(self, model, batch, rng):
        wind = of_each_agent(batch["wind"], batch["segment_ids"])
        error = model(batch["agents"], wind, batch["segment_ids"]) - batch["step"]  # [batch, agents, 2]
        distance = jnp.linalg.norm(error, axis=-1)
        return Loss.of((error**2).sum(-1), batch["mask"], {"distance": Mean.of(distance, batch["mask"])})


def of_each_agent(values, segment_ids):
    """Returns the value of the scene of each agent, `[batch, agents, ...]`.

    Args:
        values: `[batch, segments, ...]` of packed scenes, or `[batch, ...]` of padded ones, which are one segment.
        segment_ids: `[batch, agents]`, from 1; 0 in padding, which gets the value of the first scene.
    """
    if values.ndim == 2:
        values = values[:, None]
    return jnp.take_along_axis(values, jnp.maximum(segment_ids - 1, 0)[..., None], axis=1)
