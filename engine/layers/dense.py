"""A dense layer whose kernel is sharded by the names of its dimensions and the sharding rules."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from engine.layers import quantization
from engine.tuning import products


class Dense(nnx.Module):
    """`x @ kernel (+ bias)` over the last dimension.

    Args:
        features_in: size of the last dimension of the input.
        features_out: size of the last dimension of the result.
        axes: logical axes of the kernel's two dimensions, such as ("embed", "mlp").
        bias: whether a bias is added.
        quantized: whether `train.precision` float8 and int8 apply. False is for a last layer, whose result is the input
            of a loss.
        scale: factor on the initial standard deviation, which is 1/sqrt(features_in) (LeCun et al. 1998).
        rngs: random keys for the initial values.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        *,
        axes: Sequence[str | None],
        bias: bool = False,
        quantized: bool = True,
        scale: float = 1.0,
        rngs: nnx.Rngs,
    ):
        init = nnx.initializers.variance_scaling(scale**2, "fan_in", "truncated_normal")
        self.kernel = nnx.Param(init(rngs.params(), (features_in, features_out)), logical_axes=tuple(axes))
        self.quantized = quantized
        self.bias = nnx.Param(jnp.zeros(features_out), logical_axes=(axes[1],)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[..., features_out]` for `[..., features_in]`."""
        product = quantization.matmul if self.quantized else products.matmul
        y = product(x, self.kernel.get_value())
        return y if self.bias is None else y + self.bias.get_value()
