"""Layers of small models, whose steps wait for the start of kernels and for memory, not for products.

They compute what those of Flax do, with fewer kernels, collectives and arrays, and with products in the precision of
the parameters where the result is float32.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

LINES, SHORT = 16, 32
"""XLA computes the sum of fewer than 32 numbers in the kernel of a GPU that reads it. A longer sum is a kernel."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def rectified_norm(x, scale, bias, epsilon):
    """Returns `x` `[batch, rows, columns, features]`, normalised over the batch and rectified, and its statistics.

    The statistics are the float32 means of `x` and of its squares, `[2, features]`. They have no gradient of their own.
    The gradient keeps `x` alone. The devices of a mesh add one array, forward and backward.
    """
    return _rectified_norm_forward(x, scale, bias, epsilon)[0]


def _rectified_norm_forward(x, scale, bias, epsilon):
    statistics = _statistics(x) / (x.size // x.shape[-1])
    y = _scaled(_standardised(x, statistics, epsilon)[0], scale, bias)
    return (jax.nn.relu(y).astype(x.dtype), statistics), (x, scale, bias, statistics)


def _rectified_norm_backward(epsilon, saved, gradients):
    x, scale, bias, statistics = saved
    standard, inverse = _standardised(x, statistics, epsilon)
    d_y = jnp.where(_scaled(standard, scale, bias) > 0, gradients[0].astype(jnp.float32), 0)
    d_bias, d_scale = sums = _sums(d_y, d_y * standard, x.dtype)
    mean_bias, mean_scale = sums / (x.size // x.shape[-1])
    d_x = (d_y - mean_bias - standard * mean_scale) * (inverse * scale.astype(jnp.float32))
    return d_x.astype(x.dtype), d_scale.astype(scale.dtype), d_bias.astype(bias.dtype)


rectified_norm.defvjp(_rectified_norm_forward, _rectified_norm_backward)


def _statistics(x):
    """Returns the sums of `x` and of its squares over all but the last dimension, float32 `[2, features]`."""
    wide = x.astype(jnp.float32)
    if x.dtype == jnp.float32:
        return _sums(wide, wide * wide, x.dtype)
    # One kernel reads `x` and adds all but `LINES` sums. What reads the result adds these.
    both, lines = jnp.stack([wide, wide * wide]), math.gcd(x.shape[2], LINES)
    both = both.reshape(*both.shape[:3], -1, lines, both.shape[-1]).sum((1, 2, 3))
    return jax.lax.optimization_barrier(both).sum(1)  # without a barrier XLA would join both sums again


def _sums(first, second, dtype):
    """Returns the sums of two arrays `[batch, rows, columns, features]` over all but the last, `[2, features]`.

    The sums of lines stay on their devices, which then add both results at once. Of short lines in half precision, one
    kernel computes all.
    """
    if first.shape[2] < SHORT and dtype != jnp.float32:
        return jnp.stack([first, second]).sum((1, 2, 3))
    return jnp.stack([first.sum(2), second.sum(2)]).sum((1, 2))


def _standardised(x, statistics, epsilon):
    """Returns float32 `x` with mean 0 and variance 1, and the inverse of its standard deviation."""
    mean, squares = statistics
    inverse = jax.lax.rsqrt(jnp.maximum(squares - mean * mean, 0) + epsilon)
    return (x.astype(jnp.float32) - mean) * inverse, inverse


def _scaled(standard, scale, bias):
    return standard * scale.astype(jnp.float32) + bias.astype(jnp.float32)


class RectifiedNorm(nnx.BatchNorm):
    """Batch normalisation and rectification of arrays `[batch, rows, columns, features]`."""

    def __call__(self, x):  # pyright: ignore[reportIncompatibleMethodOverride], a layer has one input
        """Returns an array of the shape and the dtype of `x`."""
        assert self.scale is not None and self.bias is not None
        if self.use_running_average:
            return nnx.relu(super().__call__(x)).astype(x.dtype)
        y, statistics = rectified_norm(x, self.scale[...], self.bias[...], self.epsilon)
        mean, squares = jax.lax.stop_gradient(statistics)
        self.mean[...] = self.momentum * self.mean[...] + (1 - self.momentum) * mean
        variance = jnp.maximum(squares - mean * mean, 0)
        self.var[...] = self.momentum * self.var[...] + (1 - self.momentum) * variance
        return y


@jax.custom_vjp
def wide_product(x, kernel):
    """Returns the float32 product of `x` and a kernel.

    The gradient is rounded to the precision of both first, like those of all layers: JAX would multiply it as float32.
    """
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32)


def _wide_product_backward(saved, d_y):
    x, kernel = saved
    d_y, leading = d_y.astype(kernel.dtype), tuple(range(x.ndim - 1))
    return d_y @ kernel.T, jnp.tensordot(x, d_y, (leading, leading))


wide_product.defvjp(lambda x, kernel: (wide_product(x, kernel), (x, kernel)), _wide_product_backward)


def wide_linear(linear, x):
    """Returns the float32 result of an `nnx.Linear`, whose products have the precision of its parameters."""
    kernel = linear.kernel[...]
    return wide_product(x.astype(kernel.dtype), kernel) + linear.bias[...].astype(jnp.float32)


def as_matrix(init):
    """Returns an initializer that makes a kernel `[..., inputs, outputs]` as a matrix; the values are the same.

    XLA:CPU compiles the random numbers of five dimensions for 2.6 s of CPU time, and those of two for 0.3 s.
    """

    def make(key, shape, *dtype):
        return init(key, (math.prod(shape[:-1]), shape[-1]), *dtype).reshape(shape)

    return make
