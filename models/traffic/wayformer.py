"""Forecasts an agent in traffic from the agents, lanes and lights around it, with attention over all of them at once.

As in Wayformer (Nayakanti et al. 2022, arXiv:2207.05844) with early fusion and latent queries: every agent, piece of a
lane and light is a token in the frame of the agent; a few learned queries attend over all tokens and then among
themselves; and further learned queries, one for each mode, read the result by cross-attention. The loss is that of a
mixture with hard assignment: only the mode that is nearest to the true future learns from it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from engine import Loss, Task, layers, metrics, plot

from ..attention import attend, only
from .targets import CURRENT, FUTURE, GROUPS, SCALE, times

FEATURES = {"agents": 6 * (CURRENT + 1) + 7, "pieces": 16, "signals": 4 + 3 * (CURRENT + 1)}


class Attention(nnx.Module):
    """Multi-head attention of queries to tokens, with pre-normalisation, a residual connection and a dense block."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.norm, self.norm_out = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        self.query, self.key, self.value = (
            layers.Dense(width, width, axes=("embed", "heads"), rngs=rngs) for _ in range(3)
        )
        self.out = layers.Dense(width, width, axes=("heads", "embed"), rngs=rngs)
        self.up = layers.Dense(width, 2 * width, axes=("embed", "mlp"), bias=True, rngs=rngs)
        self.down = layers.Dense(2 * width, width, axes=("mlp", "embed"), bias=True, rngs=rngs)

    def __call__(self, x, tokens=None, mask=None):
        """Returns `[batch, queries, width]`.

        Args:
            x: the queries, of that shape.
            tokens: what they attend to, `[batch, tokens, width]`, normalised; None for the queries themselves.
            mask: tokens that exist, bool `[batch, tokens]`.
        """
        y = self.norm(x)
        tokens = y if tokens is None else tokens
        q, k, v = (
            project(z).reshape(*z.shape[:-1], self.heads, -1)
            for project, z in ((self.query, y), (self.key, tokens), (self.value, tokens))
        )
        found, _ = attend(q, k, v, 0.0 if mask is None else only(mask[:, None, None]))
        x = x + self.out(found.reshape(x.shape))
        return x + self.down(nnx.gelu(self.up(self.norm_out(x))))


class Wayformer(nnx.Module):
    """Encoder of all tokens to latents, and a decoder with a learned query for each mode."""

    def __init__(self, config: "TrafficForecast", rngs: nnx.Rngs):
        width, heads = config.width, config.heads
        self.embed = nnx.Dict(
            {
                name: nnx.List(
                    [
                        layers.Dense(size, width, axes=(None, "embed"), bias=True, rngs=rngs),
                        layers.Dense(width, width, axes=("embed", None), bias=True, rngs=rngs),
                    ]
                )
                for name, size in FEATURES.items()
            }
        )
        self.norm_in, self.norm = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        self.latents = nnx.Param(rngs.params.normal((config.latents, width)), logical_axes=(None, "embed"))
        self.encoder = nnx.List([Attention(width, heads, rngs) for _ in range(1 + config.encoder)])
        self.queries = nnx.Param(rngs.params.normal((config.modes, width)), logical_axes=(None, "embed"))
        self.decoder = nnx.List([Attention(width, heads, rngs) for _ in range(2 * config.decoder)])
        self.norm_out = nnx.LayerNorm(width, rngs=rngs)
        self.head = layers.Dense(width, 3 * FUTURE + 1, axes=("embed", None), bias=True, rngs=rngs)

    def __call__(self, batch):
        """Returns the modes of a batch of agents, in the frame of each agent.

        Returns:
            Positions `[batch, modes, FUTURE, 2]` in metres, the logarithms of their scales in metres
            `[batch, modes, FUTURE]`, and logits of the modes `[batch, modes]`.
        """
        embedded = {name: two(nnx.gelu(one(batch[name]))) for name, (one, two) in self.embed.items()}
        x = jnp.concatenate(list(embedded.values()), axis=1)
        mask = jnp.concatenate([batch["mask"][name] for name in embedded], axis=1)
        latents = jnp.broadcast_to(self.latents.get_value(), (x.shape[0], *self.latents.shape))
        latents = self.encoder[0](latents + x[:, :1], self.norm_in(x), mask)  # the first token is the agent itself
        for block in self.encoder[1:]:
            latents = block(latents)
        tokens, x = self.norm(latents), self.queries.get_value() + x[:, :1]
        for number, block in enumerate(self.decoder):
            x = block(x) if number % 2 else block(x, tokens)
        x = self.head(self.norm_out(x)).astype(jnp.float32)
        speeds = x[..., : 2 * FUTURE].reshape(*x.shape[:-1], FUTURE, 2) * 5  # metres per second, over those of now
        speeds = speeds + jnp.stack([batch["speed"], 0 * batch["speed"]], -1)[:, None, None]
        return jnp.cumsum(speeds, axis=-2) * times()[0], x[..., 2 * FUTURE : -1], x[..., -1]


@dataclasses.dataclass
class TrafficForecast(Task):
    """Predicts `modes` futures of an agent in simulated traffic, with scores."""

    modes: int = 6
    width: int = 64
    heads: int = 4
    latents: int = 24
    encoder: int = 2
    decoder: int = 2
    score: float = 0.5  # factor of the loss of the scores
    full_precision = ("future", "speed")

    def build(self, rngs):
        return Wayformer(self, rngs)

    def loss(self, model, batch, rng):
        predicted, log_scale, logits = model(batch)
        error = distance(predicted, batch["future"])  # [batch, modes, steps]
        best = jax.lax.stop_gradient(error.mean(-1).argmin(-1))
        error, log_scale = (jnp.take_along_axis(x, best[:, None, None], axis=1)[:, 0] for x in (error, log_scale))
        scale = log_scale.clip(-1, 3)  # at least 0.4 m, or agents that stand would dominate the gradient
        chosen = -jnp.take_along_axis(jax.nn.log_softmax(logits), best[:, None], axis=1)[:, 0]
        likelihood = (error * jnp.exp(-scale) + 2 * scale).mean(-1)  # that of a Laplace distribution in the plane
        return Loss.sum(best=Loss.of(likelihood), score=self.score * Loss.of(chosen))

    def evaluate(self, model, batch):
        """Returns the errors of agents that move: of the best mode, of the most likely one, of constant velocity."""
        predicted, _, logits = model(batch)
        top = jnp.take_along_axis(predicted, logits.argmax(-1)[:, None, None, None], axis=1)
        moving = batch["group"] != GROUPS.index("standing")
        return {
            name: metrics.BestOfModes.of(modes, batch["future"], moving)
            for name, modes in (("best", predicted), ("top", top), ("constant_velocity", constant_velocity(batch)))
        }

    def predict(self, model, batch):
        predicted, _, logits = model(batch)
        return {"future": predicted, "probability": jax.nn.softmax(logits)}

    def figure(self, example, prediction):
        agents = example["agents"].reshape(len(example["agents"]), -1)[:, : 6 * (CURRENT + 1)]
        states = agents.reshape(len(agents), CURRENT + 1, 6)
        past = np.where(states[..., 5:] > 0, states[..., :2] * SCALE, np.nan)
        figure = plot.tracks(past, lanes=example["lanes"][example["mask"]["pieces"]], valid=example["mask"]["agents"])
        return plot.tracks(
            past[:1],
            example["future"][None],
            prediction["future"][None],
            scores=prediction["probability"][None] / prediction["probability"].max(),
            ax=figure.axes[0],
            title=f"Simulated traffic (SUMO), {example['id']}",
        )


def distance(predicted, future):
    """Returns the distances `[batch, modes, steps]` of predictions from the future, with a gradient where it is 0."""
    return jnp.sqrt(((predicted - future[:, None]) ** 2).sum(-1) + 1e-6)


def constant_velocity(batch):
    """Returns the future `[batch, 1, steps, 2]` of agents that keep their speed and their heading."""
    along = batch["speed"][:, None] * times()
    return jnp.stack([along, 0 * along], -1)[:, None]
