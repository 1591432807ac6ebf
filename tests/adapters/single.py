"""Single layers with an adapter whose matrices are random."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from engine import layers
from engine.adapters import Adapter
from engine.adapters.modules import add


def draw(*shape):
    """Returns random numbers, the same ones for a sum of sizes."""
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


def with_adapter(module, name="kernel", **settings):
    """Returns the module with an adapter whose matrices are random, and the product of these."""
    add(module, {"lora": Adapter(f"{name}$", rank=2, alpha=3, **settings)}, "", nnx.Rngs(1))
    held = vars(module)
    for letter in "ab":
        matrix = held[f"{name}_lora_{letter}"]
        matrix.set_value(draw(*matrix.shape))
    return module, 1.5 * held[f"{name}_lora_a"].get_value() @ held[f"{name}_lora_b"].get_value()


DENSE = {
    "Dense": lambda: layers.Dense(6, 4, axes=("embed", "mlp"), bias=True, rngs=nnx.Rngs(0)),
    "Linear": lambda: nnx.Linear(6, 4, rngs=nnx.Rngs(0)),
    "LinearGeneral": lambda: nnx.LinearGeneral(6, 4, rngs=nnx.Rngs(0)),
    "Conv": lambda: nnx.Conv(6, 4, (3,), rngs=nnx.Rngs(0)),
}
