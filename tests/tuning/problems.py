"""Small problems whose best learning rate or noise scale is known exactly."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import nnx

from engine import ArraySource, Loss, Task
from engine.base.duration import RunSize
from engine.config import defaults, validate
from engine.config.override import assign

CURVATURES = (1.0,) * 24 + (0.5,) * 8
SIZE = 6


class Point(nnx.Module):
    """A vector of parameters."""

    def __init__(self, start):
        self.value = nnx.Param(jnp.asarray(start, jnp.float32))


@dataclasses.dataclass
class Bowl(Task):
    """Half of curvature times the squared distance to noisy targets. Gradient descent is stable up to 2 / curvature."""

    def build(self, rngs):
        return Point(np.full(len(CURVATURES), 1.0))

    def loss(self, model, batch, rng):
        distances = model.value.get_value() - batch["x"]
        return Loss.of((0.5 * jnp.array(CURVATURES) * distances**2).sum(-1))


def targets(n=512, noise=0.1):
    """Returns noisy targets around 0."""
    return ArraySource({"x": np.random.default_rng(0).normal(0, noise, (n, len(CURVATURES))).astype(np.float32)})


@dataclasses.dataclass
class Regression(Task):
    """Linear least squares, with a weight for each example."""

    def build(self, rngs):
        return Point(np.full(SIZE, 0.5))

    def loss(self, model, batch, rng):
        errors = batch["x"] @ model.value.get_value() - batch["y"]
        return Loss.of(0.5 * errors**2, batch["weight"])


def examples(n=400, weighted=False):
    """Returns `x` `[n, SIZE]`, `y` and `weight` `[n]`, of which a third are 0 if they are `weighted`."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n, SIZE))
    y = x @ np.linspace(-1, 1, SIZE) + rng.normal(size=n)
    weight = rng.random(n) > 1 / 3 if weighted else np.ones(n)
    return {name: value.astype(np.float32) for name, value in (("x", x), ("y", y), ("weight", weight))}


def observations(n=400, weighted=False):
    """Returns the examples as a source."""
    return ArraySource(examples(n, weighted))


def example_gradients(point, weighted=False):
    """Returns the gradient of each example `[n, SIZE]` at a point, in float64, and the weights `[n]`."""
    found = {name: value.astype(np.float64) for name, value in examples(weighted=weighted).items()}
    return (found["x"] @ point - found["y"])[:, None] * found["x"], found["weight"]


def config(task, data, **settings):
    """Returns a config of plain gradient descent on one of the problems; `train__seed=1` sets a field."""
    c = defaults()
    c.name = "tuned"
    c.task = dict(target=f"{__name__}.{task}")
    c.data = dict(target=f"{__name__}.{data}")
    c.train.total = "1000 steps"
    c.train.global_batch_size = 8
    c.optimizer = dict(target="optax.sgd", learning_rate=0.05, schedule="constant", clip_norm=None)
    for name, value in settings.items():
        assign(c, name.replace("__", "."), value)
    return validate(c)


def size(total):
    """Returns the sizes of a run of `total` steps."""
    return RunSize(8, 512, total)
