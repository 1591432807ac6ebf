"""Small functions of weights and inputs with every kind of product, and batches of their inputs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

WIDTH, LAYERS = 8, 3


def dense(weights: Any, inputs: Any) -> dict[str, jax.Array]:
    """Two dense layers, the first in a called function."""
    hidden = jax.jit(lambda x, kernel: jax.nn.relu(x @ kernel))(inputs["x"], weights["first"])
    return {"y": hidden @ weights["second"] + weights["bias"]}


def stack(weights: Any, inputs: Any) -> dict[str, jax.Array]:
    """Layers in a loop, each computed again in a backward pass."""

    def layer(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, None]:
        return jnp.tanh(jax.checkpoint(jnp.matmul)(x, kernel)) + x, None

    return {"y": lax.scan(layer, inputs["x"], weights["layers"])[0]}


def convolution(weights: Any, inputs: Any) -> dict[str, jax.Array]:
    """A strided convolution, and one in two groups."""
    numbers = ("NHWC", "HWIO", "NHWC")
    x = inputs["x"].reshape(-1, 4, 4, 2)
    y = lax.conv_general_dilated(x, weights["conv"], (2, 2), "SAME", dimension_numbers=numbers)
    grouped = lax.conv_general_dilated(
        y, weights["grouped"], (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=2
    )
    return {"y": grouped.mean((1, 2))}


def batches(count: int = 3, rows: int = 16, width: int = WIDTH, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Returns batches of inputs `x`."""
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(rows, width)).astype(np.float32)} for _ in range(count)]


def arrays(seed: int = 1, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Returns weights with these shapes; their channels have different sizes."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.normal(size=shape) * np.exp(rng.normal(size=shape[-1:]))).astype(np.float32)
        for name, shape in shapes.items()
    }


DENSE = arrays(first=(WIDTH, 6), second=(6, 4), bias=(4,))
STACK = arrays(layers=(LAYERS, WIDTH, WIDTH))
CONVOLUTION = arrays(conv=(3, 3, 2, 6), grouped=(3, 3, 3, 4))
IMAGES = batches(width=32)
