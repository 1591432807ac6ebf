"""A small model with a stack of layers with attention and ReLU, whose activations a test can compute again."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from engine import Loss, Task
from engine.layers import Dense, Stack, attention

WIDTH, HEADS, TIME, LAYERS = 8, 2, 4, 4
SHIFT = 2.5  # so that some units are 0 in a whole batch


class Layer(nnx.Module):
    """Causal attention and a perceptron with ReLU."""

    def __init__(self, rngs: nnx.Rngs):
        self.qkv = Dense(WIDTH, 3 * WIDTH, axes=("embed", "heads"), rngs=rngs)
        self.up = Dense(WIDTH, 2 * WIDTH, axes=("embed", "mlp"), rngs=rngs)
        self.down = Dense(2 * WIDTH, WIDTH, axes=("mlp", "embed"), rngs=rngs)

    def attend(self, x):
        q, k, v = jnp.split(self.qkv(x).reshape(*x.shape[:2], HEADS, -1), 3, -1)
        return x + attention(q, k, v, causal=True).reshape(x.shape)

    def hidden(self, x):
        return nnx.relu(self.up(x) - SHIFT)

    def __call__(self, x, rng=None):
        x = self.attend(x)
        return x + self.down(self.hidden(x))


class Stacked(nnx.Module):
    """An embedding, a stack of layers, and a head."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = Dense(WIDTH // 2, WIDTH, axes=(None, "embed"), rngs=rngs)
        self.decoder = Stack(Layer, LAYERS, rngs=rngs, unroll=False)
        self.head = Dense(WIDTH, 4, axes=("embed", None), rngs=rngs)

    def __call__(self, x):
        x = self.embed(x.reshape(len(x), TIME, -1))
        return self.head(self.decoder(x).mean(1))


@dataclasses.dataclass
class Classify(Task):
    """Classifies the examples of `tests/zoo.py`."""

    def build(self, rngs):
        return Stacked(rngs)

    def loss(self, model, batch, rng):
        losses = optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"])
        return Loss.of(losses, batch["valid"])


def layers_of(params: dict[str, jax.Array]) -> list[Layer]:
    """Returns the layers of the stack as modules of their own."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Layer(nnx.Rngs(0))))
    found = []
    for i in range(LAYERS):
        flat = [(key, params["decoder/layers/" + "/".join(map(str, key))][i]) for key, _ in nnx.to_flat_state(state)]
        found.append(nnx.merge(graph, nnx.from_flat_state(flat)))
    return found
