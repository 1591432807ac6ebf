"""Two towers with a contrastive loss, written as `encode` and `loss_of`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from engine import Loss, Mean, Task
from tests import zoo


class Towers(nnx.Module):
    """Two encoders with dropout, a temperature and a bias."""

    def __init__(self, rngs):
        self.left, self.right = zoo.Mlp(32, 0.1, rngs), zoo.Mlp(32, 0.1, rngs)
        self.temperature, self.bias = nnx.Param(jnp.float32(1.5)), nnx.Param(jnp.float32(-2.0))

    def __call__(self, x, rng):
        sides = self.left(x, rng), self.right(x[:, ::-1], rng)
        return [side / jnp.linalg.norm(side, axis=-1, keepdims=True) for side in sides]


@dataclasses.dataclass
class Contrast(Task):
    """The loss of CLIP (Radford et al. 2021, figure 3), or that of SigLIP (Zhai et al. 2023, algorithm 1)."""

    sigmoid: bool = False

    def build(self, rngs):
        return Towers(rngs)

    def encode(self, model, batch, rng):
        left, right = model(batch["x"], rng)
        scale = jnp.exp(model.temperature.get_value())
        scalars = {"scale": scale, "bias": model.bias.get_value()}
        return {
            "left": left,
            "right": right,
            "label": batch["y"],
            **{k: jnp.broadcast_to(v, len(left)) for k, v in scalars.items()},
        }

    def loss_of(self, encoded, batch, mask) -> Any:
        logits = encoded["scale"][:, None] * encoded["left"] @ encoded["right"].T
        pairs = mask[:, None] & mask[None]
        hits = Mean.of(jnp.where(pairs, logits, -jnp.inf).argmax(-1) == jnp.arange(len(mask)), mask)
        if self.sigmoid:
            signs = 2 * jnp.eye(len(mask)) - 1
            values = -jax.nn.log_sigmoid(signs * (logits + encoded["bias"][:, None]))
            return Loss.of(jnp.where(pairs, values, 0).sum(-1), mask, {"recall": hits})
        values = [
            optax.softmax_cross_entropy_with_integer_labels(jnp.where(pairs, x, -1e9), jnp.arange(len(mask)))
            for x in (logits, logits.T)
        ]
        return Loss.of((values[0] + values[1]) / 2, mask, {"recall": hits})
