"""Forecasts of several futures of each agent, from its own history and that of the agents around it.

Each agent sees the scene in its own frame: the origin is its last position, and its heading is the x axis. So a moved
or rotated scene gets the same forecasts, moved or rotated. An agent that stands still has no heading: its frame keeps
the axes of the recording. Training chooses the best of the forecasts (winner takes all), softly in the first part of a
run, so that every mode learns (annealed multiple choice learning, Perera et al. 2024, arXiv:2407.15580).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from engine import Loss, Task, layers, metrics, plot

from ..attention import Attention, FeedForward, SocialBlock

FASTEST_STILL = 0.05  # metres over three steps; below, the heading of an agent is noise


class TemporalBlock(nnx.Module):
    """Attention among the steps of one agent."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.attention = Attention(width, heads, rngs)
        self.feed_forward = FeedForward(width, rngs)

    def __call__(self, x):
        """Returns `[batch, agents, steps, width]` for `x` of that shape."""
        return self.feed_forward(x + self.attention(self.norm(x))[0])


class Forecaster(nnx.Module):
    """Temporal blocks, social blocks on the last step of each agent, and a decoder whose modes share their layers."""

    def __init__(self, config: "Forecast", rngs: nnx.Rngs):
        width, heads, self.steps = config.width, config.heads, config.steps
        self.embed = layers.Dense(4, width, axes=(None, "embed"), bias=True, rngs=rngs)
        self.positions = nnx.Param(0.02 * rngs.params.normal((config.observed, width)), logical_axes=(None, "embed"))
        self.temporal = nnx.List([TemporalBlock(width, heads, rngs) for _ in range(config.temporal)])
        self.relate = layers.Dense(6, 32, axes=(None, None), bias=True, rngs=rngs)
        self.social = nnx.List([SocialBlock(width, heads, 32, rngs) for _ in range(config.social)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.modes = nnx.Param(rngs.params.normal((config.modes, 2 * width)), logical_axes=(None, "mlp"))
        self.decode = nnx.List(
            [
                layers.Dense(width, 2 * width, axes=("embed", "mlp"), rngs=rngs),
                layers.Dense(2 * width, 2 * width, axes=("mlp", None), bias=True, rngs=rngs),
                layers.Dense(2 * width, 2 * config.steps + 1, axes=("mlp", None), bias=True, rngs=rngs),
            ]
        )

    def __call__(self, history, segment_ids):
        """Returns forecasts and their scores.

        Args:
            history: `[batch, agents, observed, 2]` in metres.
            segment_ids: `[batch, agents]`, one number for each scene of a row.

        Returns:
            Positions `[batch, agents, modes, steps, 2]` in the frame of `history`, and logits `[batch, agents, modes]`.
        """
        position, frame = history[:, :, -1], frames(history)
        own = jnp.einsum("bntx,bnxy->bnty", history - position[:, :, None], frame)
        velocity = jnp.diff(own, axis=2, prepend=own[:, :, :1])
        x = self.embed(jnp.concatenate([own, velocity], axis=-1)) + self.positions.get_value()
        for block in self.temporal:
            x = block(x)
        x = x[:, :, -1]
        relations = nnx.gelu(self.relate(self._relations(history, frame)))
        same_scene = segment_ids[:, :, None] == segment_ids[:, None]
        for block in self.social:
            x = block(x, relations, same_scene)
        x = nnx.gelu(self.decode[0](self.norm(x))[:, :, None] + self.modes.get_value())
        x = self.decode[2](x + nnx.gelu(self.decode[1](x)))
        change = x[..., :-1].reshape(*x.shape[:-1], self.steps, 2)
        straight = velocity[:, :, None, None, -1] * jnp.arange(1.0, self.steps + 1)[:, None]
        return position[:, :, None, None] + jnp.einsum("bnkty,bnxy->bnktx", straight + change, frame), x[..., -1]

    def _relations(self, history, frame):
        """Returns `[batch, agents, agents, 6]`: position and velocity of another agent in the frame of each agent."""
        last, step = history[:, :, -1], history[:, :, -1] - history[:, :, -2]
        there = jnp.einsum("bijx,bixy->bijy", last[:, None] - last[:, :, None], frame)
        moving = jnp.einsum("bjx,bixy->bijy", step, frame)
        distance = jnp.sqrt((there**2).sum(-1, keepdims=True) + 1e-6)
        return jnp.concatenate([there / (1 + distance), moving, jnp.exp(-distance), jnp.log1p(distance)], axis=-1)


def frames(history):
    """Returns a rotation `[batch, agents, 2, 2]` for each agent: `vector @ rotation` is in the frame of the agent."""
    ahead = history[:, :, -1] - history[:, :, -4]
    length = jnp.sqrt((ahead**2).sum(-1, keepdims=True) + 1e-12)
    c, s = jnp.moveaxis(jnp.where(length > FASTEST_STILL, ahead / length, jnp.array([1.0, 0.0])), -1, 0)
    return jnp.stack([jnp.stack([c, -s], -1), jnp.stack([s, c], -1)], axis=-2)


@dataclasses.dataclass
class Forecast(Task):
    """Predicts `modes` futures of every agent, with scores, from packed scenes."""

    modes: int = 20
    observed: int = 8
    steps: int = 12
    width: int = 64
    heads: int = 4
    temporal: int = 2
    social: int = 1
    temperature: float = 0.5  # metres; of the choice of the best mode at the start
    annealed: float = 0.5  # share of the run after which only the best mode learns
    score: float = 0.1  # factor of the loss of the scores
    full_precision = ("history", "future")

    def build(self, rngs):
        return Forecaster(self, rngs)

    def loss(self, model, batch, rng, context):
        predicted, logits = model(batch["history"], batch["segment_ids"])
        error = jnp.sqrt(
            ((predicted - batch["future"][:, :, None]) ** 2).sum(-1) + 1e-8
        )  # [batch, agents, modes, steps]
        progress = context.step / (self.annealed * context.total_steps)
        temperature = self.temperature * jnp.maximum(1 - progress, 0) + 1e-3
        means = [error.mean(-1), error[..., -1]]  # what minADE and minFDE take the best of
        shares = [jax.lax.stop_gradient(jax.nn.softmax(-mean / temperature)) for mean in means]
        best = jnp.sum(jnp.stack(shares) * jnp.stack(means), axis=(0, -1))
        chosen = -(shares[0] * jax.nn.log_softmax(logits)).sum(-1)
        return Loss.sum(best=Loss.of(best, batch["mask"]), score=self.score * Loss.of(chosen, batch["mask"]))

    def evaluate(self, model, batch):
        predicted, logits = model(batch["history"], batch["segment_ids"])
        first = jnp.take_along_axis(predicted, logits.argmax(-1)[..., None, None, None], axis=2)
        return {
            "best": metrics.BestOfModes.of(predicted, batch["future"], batch["mask"]),
            "top": metrics.BestOfModes.of(first, batch["future"], batch["mask"]),
        }

    def predict(self, model, batch):
        predicted, logits = model(batch["history"], batch["segment_ids"])
        return {"future": predicted, "probability": jax.nn.softmax(logits)}

    def figure(self, example, prediction):
        """Returns a figure of the first scene of a row. The most likely future of an agent is the least transparent."""
        likely = prediction["probability"] / prediction["probability"].max(-1, keepdims=True)
        first = example["segment_ids"] == 1
        return plot.tracks(example["history"], example["future"], prediction["future"], scores=likely, valid=first)
