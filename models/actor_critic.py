"""An actor-critic (PPO, Schulman et al. 2017) that balances a pole on a cart (Barto, Sutton and Anderson 1983).

The environment is a function in JAX, so an example is the seed of an episode. The Task replaces the update: it
plays the episodes of a batch, and then takes several steps of the optimizer on what it has seen.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from engine import ArraySource, Mean, Task


class ActorCritic(nnx.Module):
    """Logits of the two actions, and the value of a state, from separate perceptrons."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.actor = nnx.Sequential(nnx.Linear(4, width, rngs=rngs), nnx.tanh, nnx.Linear(width, 2, rngs=rngs))
        self.critic = nnx.Sequential(nnx.Linear(4, width, rngs=rngs), nnx.tanh, nnx.Linear(width, 1, rngs=rngs))


def move(state, action):
    """Returns states `[batch, 4]` (position, speed, angle, turn rate) 20 ms after a push to the left (0) or right."""
    _, speed, angle, turn = jnp.moveaxis(state, -1, 0)
    push = (20.0 * action - 10 + 0.05 * turn**2 * jnp.sin(angle)) / 1.1
    spin = (9.8 * jnp.sin(angle) - jnp.cos(angle) * push) / (0.5 * (4 / 3 - 0.1 * jnp.cos(angle) ** 2 / 1.1))
    shift = push - 0.05 * spin * jnp.cos(angle) / 1.1
    return state + 0.02 * jnp.stack([speed, shift, turn, spin], axis=-1)


def upright(state):
    """Returns whether an episode continues: cart within 2.4 m, pole within 12 degrees."""
    return (jnp.abs(state[..., 0]) < 2.4) & (jnp.abs(state[..., 2]) < 0.2095)


def start(seed):
    """Returns the first states `[batch, 4]` of episodes with these seeds."""
    return jax.vmap(lambda n: jax.random.uniform(jax.random.key(n), (4,), minval=-0.05, maxval=0.05))(seed)


@dataclasses.dataclass
class CartPole(Task):
    """Balances the pole for as many steps as possible; each step is a reward of 1."""

    width: int = 32
    length: int = 200  # steps of an episode
    passes: int = 4  # optimizer steps on the same episodes
    discount: float = 0.98
    clip: float = 0.2  # largest change of the probability of an action in one update

    def build(self, rngs):
        return ActorCritic(self.width, rngs)

    def play(self, model, seed, choose):
        """Returns states, actions and whether the episode still ran, each `[time, batch, ...]`."""

        def step(carry, index):
            state, alive = carry
            action = choose(model.actor(state), index)
            after = move(state, action)
            return (jnp.where(alive[:, None], after, state), alive & upright(after)), (state, action, alive)

        first = (start(seed), jnp.ones(len(seed), bool))
        return jax.lax.scan(step, first, jnp.arange(self.length))[1]

    def update(self, state, batch, context):
        def draw(logits, index):
            keys = jax.vmap(jax.random.fold_in, (0, None))(context.rng, index)
            return jax.vmap(jax.random.categorical)(keys, logits)

        before = state.model()
        states, actions, alive = self.play(before, batch["seed"], draw)
        _, returns = jax.lax.scan(
            lambda after, alive: (alive * (1 + self.discount * after),) * 2,
            jnp.zeros(alive.shape[1]),
            alive,
            reverse=True,
        )
        advantage = jnp.where(alive, returns - before.critic(states)[..., 0], 0)
        advantage /= jnp.sqrt((advantage**2).sum() / alive.sum()) + 1e-6

        def log_probability(model):
            return jnp.take_along_axis(nnx.log_softmax(model.actor(states)), actions[..., None], axis=-1)[..., 0]

        old = log_probability(before)

        def loss(params, state):
            model = state.model(params)
            ratio = jnp.exp(log_probability(model) - old)
            gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - self.clip, 1 + self.clip) * advantage)
            error = (model.critic(states)[..., 0] - returns) ** 2 / self.length
            return ((0.5 * error - gain) * alive).sum() / alive.sum()

        def improve(state, _):
            value, grads = jax.value_and_grad(loss)(state.params, state)
            return state.apply_gradients(grads), value

        state, values = jax.lax.scan(improve, state, length=self.passes)
        return state, {"loss": Mean(values[0], jnp.float32(1)), "steps": Mean.of(alive.sum(0))}

    def evaluate(self, model, batch):
        _, _, alive = self.play(model, batch["seed"], lambda logits, index: logits.argmax(-1))
        return {"steps": Mean.of(alive.sum(0))}


def episodes(first: int = 0, count: int = 10_000) -> ArraySource:
    """Returns the seeds of episodes as examples."""
    return ArraySource({"seed": np.arange(first, first + count, dtype=np.uint32)})
