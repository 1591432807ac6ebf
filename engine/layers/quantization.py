"""Matrix products in eight bits, for `train.precision` float8 and int8.

Operands are scaled to the range of the format and rounded in each step, from their values in this step, so that no
scale is part of the state. Rounding does not depend on how rows are divided over devices and microbatches:

- float8: the scale of an array is a power of two. It shifts exponents and leaves the rounding of each value alone,
  except for values below 2^-14 of the largest, which become denormal.
- int8: each row of the activations has its own scale.

The rest of the layer computes in bfloat16. A product with a float32 operand stays float32.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from engine.layers.platforms import grouped_products, products
from engine.layers.platforms.grouped_products import Blocks
from engine.parallel import layout

MULTIPLE = 16
"""The sizes of a kernel are multiples of it, as tensor cores need. So coordinates and a few classes keep 16 bits."""

_SMALLEST = 2.0**-100  # scale of an array of zeros

type _Contracted = tuple[tuple[int, ...], tuple[int, ...]]


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns `x @ kernel`, `[..., out]`, in the dtype of `x`; in eight bits if `train.precision` says so.

    Args:
        x: `[..., features]`.
        kernel: `[features, out]`.
    """
    precision = _precision(x, kernel)
    return _PRODUCTS[precision](x, kernel) if precision else products.matmul(x, kernel)


def grouped_matmul(rows: jax.Array, kernels: jax.Array, sizes: jax.Array, blocks: Blocks) -> jax.Array:
    """Returns the result of `grouped_products.grouped_matmul`, in eight bits if `train.precision` says so.

    The gradient of the kernels is a product in 16 bits, with float8, too.
    """
    precision = _precision(rows, kernels)
    if not precision:
        return grouped_products.grouped_matmul(rows, kernels, sizes, blocks)
    return _grouped(precision, blocks, rows, kernels, sizes)


def _precision(x: jax.Array, kernel: jax.Array) -> str:
    """Returns the precision of a product in eight bits, or "" for a product that is not quantized."""
    here = layout.current()
    if not here.quantizes or any(size % MULTIPLE for size in kernel.shape[-2:]):
        return ""
    here.used.add(layout.QUANTIZED)
    return here.precision if jnp.result_type(x, kernel).itemsize == 2 else ""


def _rows(x: jax.Array) -> tuple[int, ...]:
    """Returns the dimensions before the last."""
    return tuple(range(x.ndim - 1))


def _dot(a: jax.Array, b: jax.Array, contracted: _Contracted, dtype: DTypeLike) -> jax.Array:
    return lax.dot_general(a, b, (contracted, ((), ())), preferred_element_type=dtype)


def _as_float8(x: jax.Array, dtype: DTypeLike) -> tuple[jax.Array, jax.Array]:
    """Returns `x / scale` in eight bits, and the scale: a power of two, for all of `x`.

    The largest magnitude becomes 0.75 to 1.5 times the largest power of two of the format.
    """
    largest = jnp.max(jnp.abs(x)).astype(jnp.float32)
    power = lax.reduce_precision(largest, exponent_bits=8, mantissa_bits=0)
    scale = jnp.maximum(power / 2.0 ** (jnp.finfo(dtype).maxexp - 1), _SMALLEST)
    return (x / scale.astype(x.dtype)).astype(dtype), scale


def _float8_dot(
    a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array], contracted: _Contracted, dtype: DTypeLike
) -> jax.Array:
    """Returns the product of two results of `_as_float8`. In bfloat16 the scale is exact."""
    return _dot(a[0], b[0], contracted, dtype) * (a[1] * b[1]).astype(dtype)


@jax.custom_vjp
def _float8(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns `x @ kernel` with e4m3 operands, and e5m2 gradients in the backward pass (Micikevicius et al. 2022)."""
    return _float8_forward(x, kernel)[0]


# The forward rules do not call the functions that have them: `train.remat` could then not keep the products alone.
# The operands are kept in 16 bits: layers that share an input share it, and only one copy of it stays in memory.
def _float8_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    e4m3 = jnp.float8_e4m3fn
    y = _float8_dot(_as_float8(x, e4m3), _as_float8(kernel, e4m3), ((x.ndim - 1,), (0,)), x.dtype)
    return y, (x, kernel)


def _float8_backward(saved: tuple[jax.Array, jax.Array], d_y: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = (_as_float8(operand, jnp.float8_e4m3fn) for operand in saved)
    d_y8 = _as_float8(d_y, jnp.float8_e5m2)
    rows = _rows(d_y)
    d_x = _float8_dot(d_y8, kernel, ((d_y.ndim - 1,), (1,)), saved[0].dtype)
    return d_x, _float8_dot(x, d_y8, (rows, rows), saved[1].dtype)


_float8.defvjp(_float8_forward, _float8_backward)


def _as_int8(x: jax.Array, axis: int | None) -> tuple[jax.Array, jax.Array]:
    """Returns `x / scale` rounded to -127 to 127, and the float32 scale: one along `axis`, or one for all of `x`."""
    largest = jnp.max(jnp.abs(x), axis=axis, keepdims=axis is not None).astype(jnp.float32)
    scale = jnp.maximum(largest / 127, _SMALLEST)
    return jnp.round(x / scale).astype(jnp.int8), scale


def _int8_dot(rows: jax.Array, kernel: jax.Array, dimension: int) -> jax.Array:
    """Returns the product of rows and a kernel over this dimension of the kernel."""
    (a, a_scale), (b, b_scale) = _as_int8(rows, -1), _as_int8(kernel, None)
    y = _dot(a, b, ((rows.ndim - 1,), (dimension,)), jnp.int32)
    return (y * (a_scale * b_scale)).astype(rows.dtype)


@jax.custom_vjp
def _int8(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns `x @ kernel` with int8 operands; the gradient of `x` is such a product, too.

    The gradient of the kernel is a product in 16 bits: its sum over all rows of the batch needs a wider range
    (Wortsman et al. 2023, section 2; also the default of MaxText's int8).
    """
    return _int8_dot(x, kernel, 0)


def _int8_backward(saved: tuple[jax.Array, jax.Array], d_y: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    rows = _rows(d_y)
    return _int8_dot(d_y, kernel, 1), _dot(x, d_y, (rows, rows), kernel.dtype)


_int8.defvjp(lambda x, kernel: (_int8_dot(x, kernel, 0), (x, kernel)), _int8_backward)

_PRODUCTS: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {"float8": _float8, "int8": _int8}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _grouped(precision: str, blocks: Blocks, rows: jax.Array, kernels: jax.Array, sizes: jax.Array) -> jax.Array:
    return _grouped_dot(precision, jnp.float8_e4m3fn, blocks, rows, kernels, sizes)


def _grouped_dot(
    precision: str, float8: DTypeLike, blocks: Blocks, rows: jax.Array, kernels: jax.Array, sizes: jax.Array
) -> jax.Array:
    """Returns the product of rows, in this format for float8, and kernels, which have one scale."""
    if precision == "float8":
        # Rows after the last group are undefined. They must not determine the scale.
        rows = jnp.where(jnp.arange(len(rows))[:, None] < sizes.sum(), rows, 0)
        (a, a_scale), (b, b_scale) = _as_float8(rows, float8), _as_float8(kernels, jnp.float8_e4m3fn)
        scale, dtype = (a_scale * b_scale).astype(rows.dtype), rows.dtype
    else:
        (a, a_scale), (b, b_scale) = _as_int8(rows, -1), _as_int8(kernels, None)
        scale, dtype = a_scale * b_scale, jnp.dtype(jnp.int32)
    return (grouped_products.grouped_matmul(a, b, sizes, blocks, dtype) * scale).astype(rows.dtype)


type _Saved = tuple[jax.Array, jax.Array, jax.Array]


def _grouped_forward(precision: str, blocks: Blocks, *args: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _grouped_dot(precision, jnp.float8_e4m3fn, blocks, *args), args


def _grouped_backward(
    precision: str, blocks: Blocks, saved: _Saved, d_y: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    rows, kernels, sizes = saved
    d_rows = _grouped_dot(precision, jnp.float8_e5m2, blocks, d_y, kernels.swapaxes(1, 2), sizes)

    def product(kernels: jax.Array) -> jax.Array:
        return grouped_products.grouped_matmul(rows, kernels, sizes, blocks)

    return d_rows, jax.vjp(product, kernels)[1](d_y)[0], None


_grouped.defvjp(_grouped_forward, _grouped_backward)
