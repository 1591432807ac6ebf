"""Encodes polylines, such as lanes and tracks, as one vector each (VectorNet, Gao et al. 2020, arXiv:2005.04259)."""

import jax
import jax.numpy as jnp
from flax import nnx

from engine.layers import Dense, RMSNorm


class PolylineEncoder(nnx.Module):
    """A small network for each point, whose result is joined with the maximum over the points of its polyline.

    VectorNet has three of these layers and normalises by mean and variance; `RMSNorm` of the engine is used here.

    Args:
        features: numbers of a point.
        width: width of the result, even.
        layers: number of layers, at least 1.
        rngs: random keys for the initial values.
    """

    def __init__(self, features: int, width: int, *, layers: int = 3, rngs: nnx.Rngs):
        sizes = [features, *[width] * (layers - 1)]
        self.layers = nnx.List([Dense(size, width // 2, axes=("embed", None), bias=True, rngs=rngs) for size in sizes])
        self.norms = nnx.List([RMSNorm(width // 2) for _ in sizes])

    def __call__(self, points: jax.Array, valid: jax.Array) -> jax.Array:
        """Returns `[..., width]`; 0 for a polyline without points.

        Args:
            points: `[..., points, features]`.
            valid: bool `[..., points]`: False for padding, which never changes the result.
        """
        x = jnp.where(valid[..., None], points, 0)  # a NaN in padding would reach the gradient of the kernel
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = nnx.relu(norm(layer(x)))
            # Values are 0 or more, so that 0 in padding changes no maximum.
            x = jnp.where(valid[..., None], x, 0)
            x = jnp.concatenate([x, jnp.broadcast_to(x.max(-2, keepdims=True), x.shape)], -1)
        return jnp.where(valid[..., None], x, 0).max(-2)
