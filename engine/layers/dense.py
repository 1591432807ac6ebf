"""A dense layer whose kernel is sharded by the names of its dimensions and the sharding rules."""

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from engine.layers import quantization
from engine.layers.platforms import products
from engine.layers.whole_weight import is_split_over_rows, with_whole_weights
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
        self.kernel = nnx.Param(init(rngs.params(), (features_in, features_out)), logical_axes=self.axes, role="matrix")
        self.bias = nnx.Param(jnp.zeros(features_out), logical_axes=(axes[1],), role="bias") if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[..., features_out]` for `[..., features_in]`."""
        matmul = quantization.matmul if self.quantized else products.matmul
        y = product(matmul, x, self.kernel.get_value(), self.axes)
        return y if self.bias is None else y + self.bias.get_value()


def project(x: jax.Array, *dense: Dense) -> Iterator[jax.Array]:
    """Yields the results of several dense layers for one input, such as queries, keys and values.

    The results equal those of one call for each layer. On TPUs the gradients of the input are added within the products
    that compute them (`_matmuls`), but not with tensor parallelism: the devices would sum each of them, and a
    decoder of 1.16 billion parameters would send 18.8 instead of 12.8 GiB.
    """
    here = layout.current()
    changed = any(type(layer).__call__ is not Dense.__call__ for layer in dense)  # such as a layer with an adapter
    if changed or here.platform != "tpu" or here.quantizes or here.size("tensor") > 1:
        yield from (layer(x) for layer in dense)
        return
    kernels = [layer.kernel.get_value() for layer in dense]
    found = _products(_matmuls, x, kernels, [layer.axes for layer in dense])
    yield from (y if layer.bias is None else y + layer.bias.get_value() for layer, y in zip(dense, found, strict=True))


@jax.custom_vjp
def _matmuls(x: jax.Array, *kernels: jax.Array) -> tuple[jax.Array, ...]:
    """Returns `x @ kernel` for each kernel `[features, out]`.

    Each product of the gradient of `x` adds the sum of those before it. XLA:TPU would otherwise write all of them to
    memory and read them again in the operation that adds them.
    """
    return tuple(x @ kernel for kernel in kernels)


def _matmuls_backward(saved: tuple[jax.Array, ...], d_ys: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    x, *kernels = saved
    d_x, *others = (d_y @ kernel.T for d_y, kernel in zip(d_ys, kernels, strict=True))
    for part in others:
        d_x = jax.lax.optimization_barrier(d_x) + part
    # A product over merged batch and positions is faster, but XLA then computes what precedes it in passes of its own.
    leading = tuple(range(x.ndim - 1))
    d_kernels = (
        jnp.tensordot(x, d_y, (leading, leading)).astype(k.dtype) for d_y, k in zip(d_ys, kernels, strict=True)
    )
    return d_x.astype(x.dtype), *d_kernels


_matmuls.defvjp(lambda x, *kernels: (_matmuls(x, *kernels), (x, *kernels)), _matmuls_backward)


def product(
    matmul: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, kernel: jax.Array, axes: Sequence[str | None]
) -> jax.Array:
    """Returns `matmul(x, kernel)`. TPUs gather a kernel that is split over the devices of the rows (`whole_weight.py`).

    There it has no forward-mode derivative (`jax.jvp`). XLA gathers the kernel with tensor parallelism, for which the
    program of this module has not been measured, and in eight bits, whose scale depends on the rows of all devices.
    """
    return _products(lambda x, kernel: (matmul(x, kernel),), x, [kernel], [axes])[0]


def _products(
    matmuls: Callable[..., tuple[jax.Array, ...]],
    x: jax.Array,
    kernels: Sequence[jax.Array],
    axes: Sequence[Sequence[str | None]],
) -> tuple[jax.Array, ...]:
    here = layout.current()
    gathers = here.platform == "tpu" and here.size("tensor") == 1 and not here.quantizes and x.ndim > 1
    if gathers and any(is_split_over_rows(x, *kernel) for kernel in zip(kernels, axes, strict=True)):
        return with_whole_weights(matmuls, x, kernels, axes)
    return matmuls(x, *kernels)
