"""Simulation of traffic by next tokens (SMART, Wu et al. 2024, arXiv:2405.15677), and its collision and off-road rates.

A roll-out is closed-loop: at each step, every agent samples its next token from the history of all agents. The lights
follow the recording. All rates and errors are over vehicles and bicycles that are valid in the last observed step and
the one before it, and over the steps in which the recording has them.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from engine import Loss, Mean, Metric, Task, layers, metrics, plot

from .movements import move, tokenise
from .road_safety import collisions, off_road
from .scenes import CURRENT, TYPES
from .token_model import TokenModel, Vocabulary
from .token_scenes import vocabulary

PEDESTRIAN = TYPES.index("pedestrian")
SCENE = ("size", "type", "points", "width", "limit", "kind", "mask", "light")  # what the model sees besides the tracks


@dataclasses.dataclass
class NextToken(Task):
    """Predicts the next token of every agent, and samples futures of scenes."""

    tokens: int = 512
    folder: str = "data/traffic"  # folder of the scenes from which the tokens of a new model are made
    width: int = 64
    heads: int = 4
    depth: int = 2
    nearest: int = 20  # pieces of lanes that an agent sees
    noise: float = 0.1  # metres; noise of the tokens that lead to the poses of training
    samples: int = 8  # roll-outs of a scene
    top: int = 16  # most likely tokens, of which a roll-out samples one
    temperature: float = 0.7  # temperature of the samples; 1 is the distribution of the model
    seed: int = 0  # seed of the futures that `predict` samples
    full_precision = ("pose", "points", "size", "width")
    model_state = (Vocabulary,)

    def build(self, rngs):
        return TokenModel(self, vocabulary(self.folder, self.tokens), rngs)

    def loss(self, model, batch, rng):
        noise = None if rng is None else (rng, self.noise)
        words = model.movements[...]
        tokens, pose, moved = tokenise(batch["pose"], batch["valid"], words, noise)
        x, _ = model(batch, pose[:, :, :-1], moved[:, :, :-1], model.motion(moved[:, :, :-1]))
        rows = x.reshape(x.shape[0], -1, x.shape[-1])
        losses = layers.cross_entropy(rows, model.head.kernel.get_value(), tokens.reshape(x.shape[0], -1))
        known = moved < len(words)  # a token leads to and from the step
        return Loss.of(losses.reshape(tokens.shape), known[:, :, 1:] & known[:, :, :-1])

    def evaluate(self, model, batch, context):
        loss = self.loss(model, batch, None)
        results: dict[str, Metric] = {"loss": Mean(loss.total, loss.weight)}
        future = batch["pose"][:, :, CURRENT + 1 :]
        counted = in_future(batch["valid"]) & (batch["type"] != PEDESTRIAN)[..., None]
        futures = {
            "model": self.roll_out(model, batch, context.rng),
            "constant_velocity": constant_velocity(batch["pose"])[:, None],
            "recording": future[:, None],
        }
        for name, poses in futures.items():
            hit, left = failures(batch, poses)
            for failure, found in (("collision_rate", hit), ("off_road_rate", left)):
                failed = (found & counted[:, None]).any(-1)
                results[f"{name}/{failure}"] = Mean.of(failed, jnp.broadcast_to(counted.any(-1)[:, None], failed.shape))
            modes = jnp.swapaxes(poses, 1, 2)[..., :2]
            results[name] = metrics.BestOfModes.of(modes, future[..., :2], counted)
        return results

    def predict(self, model, batch):
        keys = jnp.broadcast_to(jax.random.key(self.seed), len(batch["pose"]))
        return {"future": self.roll_out(model, batch, keys)}

    def figure(self, example, prediction):
        valid = example["valid"]
        here, line = (valid & (example["type"] != PEDESTRIAN)[:, None])[:, CURRENT], example["mask"] & example["road"]
        position = np.where(valid[..., None], example["pose"][..., :2], np.nan)
        modes = np.moveaxis(prediction["future"], 0, 1)[..., :2]
        past, future = position[:, : CURRENT + 1], position[:, CURRENT + 1 :]
        return plot.tracks(past, future, modes, lanes=example["points"][line], valid=here, title="simulated")

    def roll_out(self, model, batch, rng):
        """Returns sampled futures `[batch, samples, agents, steps, 3]` for keys `[batch]`.

        The first steps are the tokens of the recording, from which the caches of the model are filled.
        """
        past, words = slice(0, CURRENT + 1), model.movements[...]
        _, pose, moved = tokenise(batch["pose"][:, :, past], batch["valid"][:, :, past], words)
        pose = pose.at[:, :, CURRENT].set(batch["pose"][:, :, CURRENT])
        valid = batch["valid"]  # agents of the current step stay until the end
        valid = jnp.where(jnp.arange(valid.shape[-1]) > CURRENT, valid[:, :, CURRENT, None], valid)
        scene = {name: batch[name] for name in SCENE} | {"valid": valid}
        keys = jax.vmap(lambda key: jax.random.split(key, self.samples))(rng).reshape(-1)
        scene, pose, moved = jax.tree.map(lambda x: jnp.repeat(x, self.samples, axis=0), (scene, pose, moved))
        rows, agents, steps = scene["valid"].shape
        caches = model.empty_caches(rows * agents, steps)

        def step(carry, t):
            here, token, caches = carry
            one = here[:, :, None], token[:, :, None]
            x, caches = model(scene, *one, model.motion(one[1]), t, caches)
            best, index = jax.lax.top_k(model.head(x[:, :, 0]) / self.temperature, min(self.top, len(words)))
            drawn = jax.vmap(lambda key, logits: jax.random.categorical(jax.random.fold_in(key, t), logits))(keys, best)
            token = jnp.take_along_axis(index, drawn[..., None], axis=-1)[..., 0]
            there = move(here, model.motion(token))
            after = jnp.minimum(t + 1, CURRENT)
            token = jnp.where(t < CURRENT, moved[:, :, after], token)
            there = jnp.where(t < CURRENT, pose[:, :, after], there)
            return (there, token, caches), there

        _, poses = jax.lax.scan(step, (pose[:, :, 0], moved[:, :, 0], caches), jnp.arange(steps - 1))
        return jnp.moveaxis(poses[CURRENT:], 0, 2).reshape(len(rng), self.samples, agents, -1, 3)


def constant_velocity(pose):
    """Returns futures `[batch, agents, steps, 3]` with the last observed velocity and heading."""
    velocity = jnp.pad(pose[:, :, CURRENT, :2] - pose[:, :, CURRENT - 1, :2], ((0, 0), (0, 0), (0, 1)))
    return pose[:, :, CURRENT, None] + velocity[:, :, None] * jnp.arange(1.0, pose.shape[2] - CURRENT)[:, None]


def in_future(valid):
    """Returns at which future steps an agent exists whose last movement is known, bool `[batch, agents, steps]`."""
    return valid[:, :, CURRENT + 1 :] & (valid[:, :, CURRENT] & valid[:, :, CURRENT - 1])[..., None]


def failures(batch, poses):
    """Returns which agents collide, and which are off the road, bool `[batch, samples, agents, steps]`.

    Where the lanes of the scene are not complete, no agent is off the road.

    Args:
        batch: the recording. An agent collides only with agents that are in the recording at this step, and in the last
            two observed ones: an agent that has just appeared has no velocity.
        poses: futures `[batch, samples, agents, steps, 3]`.
    """
    size, points, width, road = (batch[name][:, None] for name in ("size", "points", "width", "road"))
    valid = in_future(batch["valid"])[:, None]

    def at(step):
        here = poses[:, :, :, step]
        known = jnp.hypot(here[..., 0], here[..., 1]) < batch["reach"][:, None, None]
        return collisions(here, size, valid[..., step]), known & off_road(here[..., :2], points, width, road)

    hit, left = jax.lax.map(at, jnp.arange(poses.shape[3]))
    return jnp.moveaxis(hit, 0, -1), jnp.moveaxis(left, 0, -1)
