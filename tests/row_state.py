"""A model that carries state for each row of a batch, and ordered data for it."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from engine import ArraySource, Loss, Mean
from tests import zoo

ROWS, PARTS, WIDTH = 16, 4, 8


class Carry(nnx.Variable):
    """State of the rows."""


class Recurrent(nnx.Module):
    """An Elman network, whose rows continue those of the batch before."""

    def __init__(self, rngs):
        self.body, self.head = nnx.Linear(zoo.SIZE + WIDTH, WIDTH, rngs=rngs), nnx.Linear(WIDTH, 4, rngs=rngs)
        self.carry, self.bank = Carry(jnp.ones((ROWS, WIDTH))), Carry(jnp.ones((ROWS, 2)))

    def __call__(self, x):
        carry = jnp.tanh(self.body(jnp.concatenate([x, self.carry[...]], axis=1)))
        self.carry[...] = carry
        return self.head(carry)


@dataclasses.dataclass
class Continue(zoo.Classify):
    """Classifies by all parts so far."""

    model_state = (Carry,)

    def build(self, rngs):
        return Recurrent(rngs)

    def loss(self, model, batch, rng):
        return Loss.of(((model(batch["x"]) - jax.nn.one_hot(batch["y"], 4)) ** 2).mean(1))

    def predict(self, model, batch):
        return {"y": model(batch["x"])}


class Total(Continue):
    """Its metric is one number for a batch."""

    def evaluate(self, model, batch):
        return {"y": Mean(model(batch["x"]).sum(), jnp.float32(len(batch["x"])))}


class Drawn(Continue):
    """It can draw its predictions."""

    def figure(self, example, prediction):
        raise AssertionError


def source(n: int = ROWS * PARTS, seed: int = 0) -> ArraySource:
    """Parts of recordings: example n * ROWS + r continues example (n - 1) * ROWS + r."""
    return ArraySource(zoo.examples(n, seed))
