"""What the methods of a Task return, checked and described for error texts."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from engine.base.errors import TaskError


def real_array(x: object, what: str) -> jax.Array:
    """Returns `x` as a float32 array. Raises TaskError if it is not an array of real numbers."""
    if problem := not_real(x):
        raise TaskError(f"{what} that are real numbers, found {problem}.")
    return jnp.asarray(x, jnp.float32)


def rows_and_mask(
    kind: str, values: object, where: object, name: str = "the mask or weights"
) -> tuple[jax.Array, jax.Array]:
    """Returns values `[batch, n]` and a mask of that shape, True where `where` is > 0.

    Args:
        kind: the class, for errors.
        values: `[batch, ...]`.
        where: mask, `[batch]` up to `[batch, ...]`; None keeps every value.
        name: name of the mask, for errors.
    """
    values = real_array(values, f"{kind}.of needs values")
    if values.ndim == 0:
        raise TaskError(f"{kind}.of needs values [batch, ...], found a scalar.")
    mask = spread(kind, real_array(1 if where is None else where, f"{kind}.of needs a mask") > 0, values.shape, name)
    return values.reshape(len(values), -1), mask.reshape(len(values), -1)


def spread(kind: str, where: jax.Array, shape: Sequence[int], name: str = "the mask or weights") -> jax.Array:
    """Returns a mask or weights, `[batch]` up to `[batch, ...]`, in the shape of the values.

    Raises:
        TaskError: the shapes do not fit together; the text names the class `kind`, and the mask `name`.
    """
    full = where.shape + (1,) * (len(shape) - where.ndim)
    if len(full) != len(shape) or any(own not in (1, size) for own, size in zip(full, shape, strict=True)):
        raise TaskError(
            f"{kind}.of: found {name} of shape {list(where.shape)} for values of shape {list(shape)}. Allowed: [batch] "
            "up to the shape of the values."
        )
    return jnp.broadcast_to(where.reshape(full), shape)


def pad_rows(rows: np.ndarray, shape: Sequence[int], fill: float = 0) -> np.ndarray:
    """Returns rows as `[rows, *shape]`, filled up at the end of each dimension, as batches of several lengths need."""
    if rows.shape[1:] == tuple(shape):
        return rows
    padded = np.full((len(rows), *shape), fill, rows.dtype)
    padded[tuple(map(slice, rows.shape))] = rows
    return padded


def not_real(x: object) -> str:
    """Returns what `x` is if it is not an array of real numbers, or a number; else an empty text."""
    if isinstance(x, list | tuple) and x:
        return next(filter(None, map(not_real, x)), "")
    dtype = np.dtype(type(x)) if isinstance(x, bool | int | float) else getattr(x, "dtype", np.dtype(object))
    is_real = any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))
    return "" if is_real else describe_value(x)


def describe_value(x: object) -> str:
    """Returns what an author's function has returned, for error texts: `None`, `a str`, `an array float32[16]`."""
    if x is None:
        return "None"
    if (shape := getattr(x, "shape", None)) is not None and (dtype := getattr(x, "dtype", None)) is not None:
        return f"an array {dtype}{list(shape)}" if shape else f"a single number ({dtype})"
    return f"a {type(x).__name__}"
