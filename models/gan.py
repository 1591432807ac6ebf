"""A generative adversarial network (Goodfellow et al. 2014) on 8x8 scans of digits."""

import dataclasses

import jax
from flax import nnx

from engine import Loss, Task


class Gan(nnx.Module):
    """A generator, which makes scans from noise, and a critic, whose output is positive for real scans."""

    def __init__(self, width: int, noise: int, rngs: nnx.Rngs):
        def perceptron(inputs, outputs, activation):
            hidden = nnx.Linear(inputs, width, rngs=rngs), activation, nnx.Linear(width, width, rngs=rngs), activation
            return nnx.Sequential(*hidden, nnx.Linear(width, outputs, rngs=rngs))

        self.noise = noise
        self.generator = perceptron(noise, 64, nnx.relu)
        self.critic = perceptron(64, 1, nnx.leaky_relu)

    def __call__(self, keys):
        """Returns a scan `[64]` for each key `[batch]`."""
        noise = jax.vmap(lambda key: jax.random.normal(key, (self.noise,)))(keys)
        return nnx.sigmoid(self.generator(noise))


@dataclasses.dataclass
class DigitsGan(Task):
    """Each loss trains the group of its name in `optimizer.groups`."""

    width: int = 128
    noise: int = 16

    def build(self, rngs):
        return Gan(self.width, self.noise, rngs)

    def loss(self, model, batch, rng):
        real, fake = model.critic(batch["image"].reshape(-1, 64)), model.critic(model(rng))
        critic = Loss.sum(real=Loss.of(nnx.softplus(-real)), fake=Loss.of(nnx.softplus(fake)))
        return {"generator": Loss.of(nnx.softplus(-fake)), "critic": critic}
