"""Forecasts agents from the agents and polylines around each, for Argoverse 2 and Waymo's motion dataset.

As in Wayformer (Nayakanti et al. 2022, arXiv:2207.05844), a few latent queries attend over all tokens of a scene, and
queries of the modes read the latents. As in MTR (Shi et al. 2022, arXiv:2209.13508), a token is a polyline: the history
of an agent, or a piece of the map. The loss is that of a mixture with hard assignment.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from engine import Loss, Task, TaskError, layers, metrics, perception, plot

from .motion_examples import AGENT_FEATURES, LINE_FEATURES, SCALE
from .wayformer import Attention, distance

RATE = 10  # steps per second, of both datasets
BENCHMARKS = ("argoverse2", "waymo")
EVERY = 5  # steps between two of Waymo's evaluation, which has 2 per second


class MotionModel(nnx.Module):
    """Encoder of polylines to tokens and of tokens to latents, and a decoder with a learned query for each mode."""

    def __init__(self, config: "MotionForecast", rngs: nnx.Rngs):
        width, heads = config.width, config.heads
        self.agents = perception.PolylineEncoder(AGENT_FEATURES, width, rngs=rngs)
        self.lines = perception.PolylineEncoder(LINE_FEATURES, width, rngs=rngs)
        self.kind = nnx.Param(0.02 * rngs.params.normal((2, width)), logical_axes=(None, "embed"))
        self.norm_in, self.norm = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        self.latents = nnx.Param(rngs.params.normal((config.latents, width)), logical_axes=(None, "embed"))
        self.encoder = nnx.List([Attention(width, heads, rngs) for _ in range(1 + config.encoder)])
        self.queries = nnx.Param(rngs.params.normal((config.modes, width)), logical_axes=(None, "embed"))
        self.decoder = nnx.List([Attention(width, heads, rngs) for _ in range(2 * config.decoder)])
        self.norm_out = nnx.LayerNorm(width, rngs=rngs)
        self.head = layers.Dense(width, 3 * config.steps + 1, axes=("embed", None), bias=True, rngs=rngs)
        self.steps = config.steps

    def __call__(self, batch):
        """Returns the modes of each target, in its frame.

        Returns:
            Positions `[batch, targets, modes, steps, 2]` in metres, the logarithms of their scales in metres
            `[batch, targets, modes, steps]`, and logits of the modes `[batch, targets, modes]`.
        """
        rows = batch["target"].shape  # [batch, targets]
        flat = {name: batch[name].reshape(-1, *batch[name].shape[2:]) for name in SCENE}
        agents = self.agents(flat["agents"], flat["agents_valid"]) + self.kind[...][0]
        lines = self.lines(flat["lines"], flat["lines_valid"]) + self.kind[...][1]
        tokens = jnp.concatenate([agents, lines], axis=1)
        mask = jnp.concatenate([flat["agents_valid"].any(-1), flat["lines_valid"].any(-1)], axis=1)
        own = agents[:, :1]  # the first token is the target itself
        x = self.encoder[0](self.latents[...] + own, self.norm_in(tokens), mask)
        for block in self.encoder[1:]:
            x = block(x)
        tokens, x = self.norm(x), self.queries[...] + own
        for number, block in enumerate(self.decoder):
            x = block(x) if number % 2 else block(x, tokens)
        x = self.head(self.norm_out(x)).astype(jnp.float32)
        x = x.reshape(*rows, *x.shape[1:])
        change = x[..., : 2 * self.steps].reshape(*x.shape[:-1], self.steps, 2) * 5  # metres per second, from now on
        speed = change + batch["velocity"][:, :, None, None]
        return jnp.cumsum(speed, axis=-2) / RATE, x[..., 2 * self.steps : -1], x[..., -1]


SCENE = ("agents", "agents_valid", "lines", "lines_valid")


@dataclasses.dataclass
class MotionForecast(Task):
    """Predicts `modes` futures of each target of a scenario, with probabilities.

    Args:
        benchmark: "argoverse2" or "waymo": whose metrics `evaluate` returns.
        steps: future steps of 0.1 s: 60 and 80 in the two.
        modes: predicted futures of a target.
        width, heads: of the attention.
        latents: latent queries that read the tokens.
        encoder, decoder: blocks of the latents, and pairs of blocks of the modes.
        score: factor of the loss of the probabilities.
    """

    benchmark: str = "argoverse2"
    steps: int = 60
    modes: int = 6
    width: int = 64
    heads: int = 4
    latents: int = 32
    encoder: int = 2
    decoder: int = 2
    score: float = 0.5
    full_precision = ("future", "velocity", "frame", "origin", "states", "boxes")

    def __post_init__(self):
        if self.benchmark not in BENCHMARKS:
            raise TaskError(f"benchmark = {self.benchmark!r}: allowed are {', '.join(BENCHMARKS)}.")

    def build(self, rngs):
        return MotionModel(self, rngs)

    def loss(self, model, batch, rng):
        predicted, log_scale, logits = model(batch)
        valid = batch["future_valid"]
        error = mode_distance(predicted, batch)  # [batch, targets, modes, steps]
        steps = jnp.maximum(valid.sum(-1), 1)
        best = jax.lax.stop_gradient(error.sum(-1).argmin(-1))[..., None]
        chosen = [jnp.take_along_axis(x, best[..., None], axis=2)[:, :, 0] for x in (error, log_scale)]
        scale = chosen[1].clip(-1, 4)  # at least 0.4 m, or agents that stand would dominate the gradient
        likelihood = jnp.where(valid, chosen[0] * jnp.exp(-scale) + 2 * scale, 0).sum(-1) / steps
        score = -jnp.take_along_axis(jax.nn.log_softmax(logits), best, axis=-1)[..., 0]
        where = batch["target"] & valid.any(-1)
        return Loss.sum(best=Loss.of(likelihood, where), score=self.score * Loss.of(score, where))

    def evaluate(self, model, batch):
        """Returns the metrics of the benchmark.

        Argoverse 2: those of the focal track and of all scored tracks; the errors of constant velocity, for
        comparison. Waymo: those of all targets.
        """
        predicted, _, logits = model(batch)
        probability = jax.nn.softmax(logits)
        if self.benchmark == "waymo":
            return {"waymo": waymo_metrics(predicted, probability, batch)}
        where = batch["future_valid"] & batch["target"][..., None]
        focal = where & (jnp.arange(where.shape[1]) == 0)[:, None]

        def errors(modes, scores, where):
            return metrics.BestOfModes.of(modes, batch["future"], where, best="endpoint", probabilities=scores)

        still = constant_velocity(batch, self.steps)
        return {
            "focal": errors(predicted, probability, focal),
            "scored": errors(predicted, probability, where),
            "constant_velocity": errors(still, jnp.ones(still.shape[:3]), focal),
        }

    def predict(self, model, batch):
        """Returns the futures relative to `origin`, in the axes of the dataset, and the probabilities of the modes."""
        predicted, _, logits = model(batch)
        return {"trajectories": to_origin(predicted, batch["frame"]), "probability": jax.nn.softmax(logits)}

    def figure(self, example, prediction):
        agents, lines = example["agents"][0], example["lines"][0]
        past = np.where(example["agents_valid"][0][..., None], agents[..., :2] * SCALE, np.nan)
        lanes = [x[seen, :2] * SCALE for x, seen in zip(lines, example["lines_valid"][0], strict=True) if seen.any()]
        x, y, turn = example["frame"][0]
        c, s = np.cos(turn), np.sin(turn)
        shown = (prediction["trajectories"][0] - [x, y]) @ np.array([[c, -s], [s, c]])
        figure = plot.tracks(past, lanes=lanes, valid=example["agents_valid"][0].any(-1))
        scores = prediction["probability"][0]
        return plot.tracks(
            past[:1],
            np.where(example["future_valid"][0][:, None], example["future"][0], np.nan)[None],
            shown[None],
            scores=(scores / scores.max())[None],
            ax=figure.axes[0],
            title=f"Scenario {example['scenario_id']}",
        )


def mode_distance(predicted, batch):
    """Returns the distances `[batch, targets, modes, steps]` of modes from the future, 0 where that is unknown."""
    rows = predicted.shape[:2]
    flat = distance(predicted.reshape(-1, *predicted.shape[2:]), batch["future"].reshape(-1, *predicted.shape[3:]))
    return jnp.where(batch["future_valid"][:, :, None], flat.reshape(*rows, *flat.shape[1:]), 0)


def to_origin(points, frame):
    """Returns points `[batch, targets, modes, steps, 2]` in frames `[batch, targets, 3]`, relative to the origin."""
    c, s = (f(frame[..., 2])[..., None, None] for f in (jnp.cos, jnp.sin))
    x, y = points[..., 0], points[..., 1]
    return jnp.stack([c * x - s * y, s * x + c * y], -1) + frame[:, :, None, None, :2]


def constant_velocity(batch, steps):
    """Returns the future `[batch, targets, 1, steps, 2]` of targets that keep their velocity."""
    return (batch["velocity"][:, :, None] * (np.arange(1, steps + 1, dtype=np.float32) / RATE)[:, None])[:, :, None]


def waymo_metrics(predicted, probability, batch):
    """Returns the metrics of Waymo's motion benchmark of a batch of `WaymoScenes` with `others`."""
    return metrics.WaymoMotion.of(
        to_origin(predicted, batch["frame"])[..., EVERY - 1 :: EVERY, :],
        probability,
        batch["states"],
        jnp.where(batch["target"], batch["type"], 0),
        where=batch["states_valid"],
        others=(batch["boxes"], batch["boxes_valid"], batch["own"]),
    )
