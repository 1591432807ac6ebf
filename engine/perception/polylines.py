"""Encodes polylines, such as lanes and tracks, as one vector each (VectorNet, Gao et al. 2020, arXiv:2005.04259)."""

import jax
import jax.numpy as jnp
from flax import nnx

from engine.layers import Dense, RMSNorm, quantization
from engine.layers.dense import product


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
        # A mesh never splits the features of a point: their number may be odd.
        sizes = [(features, None), *[(width, "embed")] * (layers - 1)]
        self.layers = nnx.List(
            [Dense(size, width // 2, axes=(axis, None), bias=True, rngs=rngs) for size, axis in sizes]
        )
        self.norms = nnx.List([RMSNorm(width // 2) for _ in sizes])

    def __call__(self, points: jax.Array, valid: jax.Array) -> jax.Array:
        """Returns `[..., width]`; 0 for a polyline without points.

        Args:
            points: `[..., points, features]`.
            valid: bool `[..., points]`: False for padding, which never changes the result.
        """
        x = jnp.where(valid[..., None], points, 0)  # a NaN in padding would reach the gradient of the kernel
        for number, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            y = _joined(layer, x) if number else layer(x)
            # Values are 0 or more, so that 0 in padding changes no maximum.
            x = jnp.where(valid[..., None], nnx.relu(norm(y)), 0)
        most = x.max(-2)
        return jnp.concatenate([most, most], -1)  # the maximum of each value, and that of the maxima


def _joined(layer: Dense, x: jax.Array) -> jax.Array:
    """Returns `layer` of each point `[..., points, width]` joined with the maximum over the points.

    The maximum is multiplied once for each polyline, and no array has both.
    """

    def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
        of_point, of_polyline = jnp.split(kernel, 2)
        return quantization.matmul(x, of_point) + quantization.matmul(x.max(-2, keepdims=True), of_polyline)

    assert layer.bias is not None
    return product(matmul, x, layer.kernel.get_value(), layer.axes) + layer.bias.get_value()
