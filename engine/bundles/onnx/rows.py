"""Gathers and scatters of a batch as ones of rows, the only form that converters and runtimes agree on."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn

SCATTERS: dict[str, Callable[..., jax.Array]] = {
    "scatter": lax.scatter,
    "scatter-add": lax.scatter_add,
    "scatter-mul": lax.scatter_mul,
    "scatter-min": lax.scatter_min,
    "scatter-max": lax.scatter_max,
}
"""Name of a primitive, with "-" for "_" -> function."""


def scatters_rows(equation: JaxprEqn) -> bool:
    """Returns whether each index of a scatter is a place of an array of rows, which is written as a whole."""
    numbers, (operand, _, updates) = equation.params["dimension_numbers"], map(shape_of, equation.invars)
    inserted, mapped = _ints(numbers.inserted_window_dims), _ints(numbers.scatter_dims_to_operand_dims)
    left_out = (*inserted, *_ints(numbers.operand_batching_dims))
    window = [size for i, size in enumerate(operand) if i not in left_out]
    written = [updates[i] for i in _ints(numbers.update_window_dims)]
    return set(inserted) == set(mapped) and window == written


def scatter(name: str, params: Any, *args: Any) -> jax.Array:
    """Returns the result of a scatter for which `scatters_rows` is true."""
    operand, indices, updates = (jnp.asarray(x) for x in args)
    numbers = params["dimension_numbers"]
    windows = _ints(numbers.update_window_dims)
    mapped, batching = _ints(numbers.scatter_dims_to_operand_dims), _ints(numbers.operand_batching_dims)
    places = _Places(operand, indices, mapped, batching, _ints(numbers.scatter_indices_batching_dims), params["mode"])
    rows = places.to_rows()
    written = updates.transpose([*(i for i in range(updates.ndim) if i not in windows), *windows])
    at, width = places.rows.reshape(-1, 1), rows.shape[1]
    if name == "scatter":
        numbers, written = lax.ScatterDimensionNumbers((1,), (0,), (0,)), written.reshape(-1, width)
        return places.from_rows(lax.scatter(rows, at, written, numbers, mode="promise_in_bounds"))
    # Single numbers instead of rows: the program then adds one after another (`rules.py`).
    at = (at * width + lax.iota(jnp.int32, width)).reshape(-1, 1)
    numbers = lax.ScatterDimensionNumbers((), (0,), (0,))
    found = SCATTERS[name](rows.reshape(-1), at, written.reshape(-1), numbers, mode="promise_in_bounds")
    return places.from_rows(found.reshape(rows.shape))


def gathers_rows(equation: JaxprEqn) -> bool:
    """Returns whether each index of a gather is a place of an array of rows, which is read as a whole."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    mapped, batching = _ints(numbers.start_index_map), _ints(numbers.operand_batching_dims)
    shape = shape_of(equation.invars[0])
    if not set(_ints(numbers.collapsed_slice_dims)) <= set(mapped):
        return False
    return all(sizes[i] == (1 if i in mapped else size) for i, size in enumerate(shape) if i not in batching)


def gather(params: Any, *args: Any) -> jax.Array:
    """Returns the result of a gather for which `gathers_rows` is true."""
    operand, indices = (jnp.asarray(x) for x in args)
    numbers = params["dimension_numbers"]
    mapped, batching = _ints(numbers.start_index_map), _ints(numbers.operand_batching_dims)
    places = _Places(operand, indices, mapped, batching, _ints(numbers.start_indices_batching_dims), params["mode"])
    rows = places.to_rows(0 if params["fill_value"] is None else params["fill_value"])
    of_rows = lax.GatherDimensionNumbers((1,), (0,), (0,))
    taken = lax.gather(rows, places.rows.reshape(-1, 1), of_rows, (1, rows.shape[1]), mode="promise_in_bounds")
    left_out = (*batching, *_ints(numbers.collapsed_slice_dims))
    sizes = [1 if i in mapped else operand.shape[i] for i in range(operand.ndim) if i not in left_out]
    taken = taken.reshape(*places.shape, *sizes)
    offsets = _ints(numbers.offset_dims)
    order = [*(i for i in range(taken.ndim) if i not in offsets), *offsets]
    return taken.transpose([order.index(i) for i in range(taken.ndim)])


def slice_at(params: Any, x: Any, starts: Any) -> jax.Array:
    """Returns the result of a gather with one index, which is a constant."""
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    for dimension, start in zip(_ints(numbers.start_index_map), np.asarray(starts), strict=True):
        first = min(max(int(start), 0), x.shape[dimension] - sizes[dimension])
        x = lax.slice_in_dim(x, first, first + sizes[dimension], axis=dimension)
    return lax.squeeze(x, _ints(numbers.collapsed_slice_dims))


class _Places:
    """Places of an array that a scatter or a gather names, as numbers of rows.

    The dimensions of the array become [batch, places, values]. Only the batch may be symbolic.

    Args:
        x: the array.
        indices: `[..., numbers]`.
        mapped: dimension of the array for each number.
        batching: dimensions of the array that are dimensions of the indices, too: `of_indices`.
        of_indices: see `batching`.
        mode: what an index outside means.
    """

    def __init__(
        self,
        x: jax.Array,
        indices: jax.Array,
        mapped: Sequence[int],
        batching: Sequence[int],
        of_indices: Sequence[int],
        mode: Any,
    ):
        self._x = x
        values = [i for i in range(x.ndim) if i not in (*batching, *mapped)]
        self._order = [*batching, *mapped, *values]
        self._sizes = [math.prod(x.shape[i] for i in part) for part in (batching, mapped, values)]
        self._spare = int(mode == lax.GatherScatterMode.FILL_OR_DROP)  # a place more, for indices outside
        self.shape = indices.shape[:-1]
        place, inside = jnp.zeros(self.shape, jnp.int32), jnp.ones(self.shape, bool)
        for k, dimension in enumerate(mapped):
            number, size = lax.index_in_dim(indices, k, -1, keepdims=False).astype(jnp.int32), x.shape[dimension]
            if mode == lax.GatherScatterMode.CLIP:
                number = jnp.clip(number, 0, size - 1)
            inside = inside & (number >= 0) & (number < size) if self._spare else inside
            place = place * size + number
        place = jnp.where(inside, place, self._sizes[1]) if self._spare else place
        batch = jnp.zeros(self.shape, jnp.int32)
        for dimension, own in zip(batching, of_indices, strict=True):
            batch = batch * x.shape[dimension] + lax.broadcasted_iota(jnp.int32, self.shape, own)
        self.rows = batch * (self._sizes[1] + self._spare) + place
        """Number of the row of each index."""

    def to_rows(self, fill: Any = 0) -> jax.Array:
        """Returns the array as rows `[batch * places, values]`; a spare place holds `fill`."""
        batch, places, values = self._sizes
        x = self._x.transpose(self._order).reshape(batch, places, values)
        if self._spare:
            x = jnp.pad(x, ((0, 0), (0, 1), (0, 0)), constant_values=fill)
        return x.reshape(batch * (places + self._spare), values)

    def from_rows(self, rows: jax.Array) -> jax.Array:
        """The inverse of `to_rows`."""
        batch, places, values = self._sizes
        x = lax.slice_in_dim(rows.reshape(batch, places + self._spare, values), 0, places, axis=1)
        x = x.reshape([self._x.shape[i] for i in self._order])
        return x.transpose([self._order.index(i) for i in range(self._x.ndim)])


def shape_of(atom: Any) -> tuple[Any, ...]:
    """Returns the shape of a variable or a literal of a jaxpr."""
    aval: Any = atom.aval
    return aval.shape


def _ints(dimensions: Sequence[Any]) -> list[int]:
    return [int(i) for i in dimensions]
