"""Root-mean-square normalisation (Zhang and Sennrich 2019), always computed in float32.

Of a half-precision input the backward pass keeps the input, on GPUs and TPUs also the mean squares, and repeats the
rest: float32 values would take twice the memory of the input, in every layer. Within a pipeline there is no
forward-mode derivative of it (`jax.jvp`).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from engine.layers.platforms import barriers
from engine.layers.rematerialization import SMALL, recomputed
from engine.parallel.layout import current


class RMSNorm(nnx.Module):
    """Divides by the root mean square of the last dimension and scales each feature.

    Args:
        features: size of the last dimension.
        epsilon: added to the mean square.
    """

    def __init__(self, features: int, *, epsilon: float = 1e-6):
        self.scale = nnx.Param(jnp.ones(features), logical_axes=("norm",), role="norm")
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[..., features]` in the dtype of `x`."""
        scale = self.scale.get_value()
        if x.dtype.itemsize >= 4:
            return self._normalised(x, scale)
        return recomputed(self._normalised, barriers.features_minor(x), scale)

    def _normalised(self, x: jax.Array, scale: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        square = jnp.mean(y * y, axis=-1, keepdims=True)
        square = square if current().platform == "cpu" else checkpoint_name(square, SMALL)
        y = y * jax.lax.rsqrt(square + self.epsilon)
        return (y * scale.astype(jnp.float32)).astype(x.dtype)
