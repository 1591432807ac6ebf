"""A dense layer whose kernel is sharded by the names of its dimensions and the sharding rules."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from engine.layers import quantization
from engine.layers.cpu import products
from engine.layers.whole_weight import is_split_over_rows, with_whole_weight
from engine.parallel import layout


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
        self.axes, self.quantized = tuple(axes), quantized
        self.kernel = nnx.Param(init(rngs.params(), (features_in, features_out)), logical_axes=self.axes)
        self.bias = nnx.Param(jnp.zeros(features_out), logical_axes=(axes[1],)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[..., features_out]` for `[..., features_in]`."""
        matmul = quantization.matmul if self.quantized else products.matmul
        y = product(matmul, x, self.kernel.get_value(), self.axes)
        return y if self.bias is None else y + self.bias.get_value()


def product(
    matmul: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, kernel: jax.Array, axes: Sequence[str | None]
) -> jax.Array:
    """Returns `matmul(x, kernel)`. TPUs gather a kernel that is split over the devices of the rows (`whole_weight.py`).

    There it has no forward-mode derivative (`jax.jvp`). XLA gathers the kernel with tensor parallelism, for which the
    program of this module has not been measured, and in eight bits, whose scale depends on the rows of all devices.
    """
    here = layout.current()
    gathers = here.platform == "tpu" and here.size("tensor") == 1 and not here.quantizes
    if gathers and x.ndim > 1 and is_split_over_rows(x, kernel, axes):
        return with_whole_weight(matmul, x, kernel, axes)
    return matmul(x, kernel)
