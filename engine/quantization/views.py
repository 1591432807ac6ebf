"""`Followed`, a weight on its way through a traced function, and the operations that only rearrange it.

Casts, transposes, reshapes and slices leave the numbers of a weight as they are. A weight that is stored as codes
passes through them with its scales, and is turned into floats where another operation reads it.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn
from jax.typing import DTypeLike


@dataclasses.dataclass(frozen=True)
class Followed:
    """A weight, or a part of it, rearranged.

    Attributes:
        name: name of the weight.
        origins: for each dimension, the dimensions of the weight that it comes from.
        array: the numbers, or integer codes of them.
        scale: factors of the codes, with size 1 in the dimensions that share a factor; None if `array` has the numbers.
        input_scale: scale or largest magnitude of the inputs of its products, a scalar for each iteration of the loops
            that slice the weight: `[loop, ...]`; None if it is not known.
    """

    name: str
    origins: tuple[frozenset[int], ...]
    array: jax.Array
    scale: jax.Array | None = None
    input_scale: jax.Array | None = None

    @classmethod
    def of(
        cls, name: str, array: Any, scale: jax.Array | None = None, input_scale: jax.Array | None = None
    ) -> "Followed":
        """Returns a weight before any operation."""
        return cls(name, tuple(frozenset({axis}) for axis in range(array.ndim)), array, scale, input_scale)

    def floats(self, dtype: DTypeLike) -> jax.Array:
        """Returns the numbers."""
        if self.scale is None:
            return self.array.astype(dtype)
        return (self.array.astype(self.scale.dtype) * self.scale).astype(dtype)

    def origins_of(self, axes: Sequence[int]) -> frozenset[int]:
        """Returns the dimensions of the weight from which some dimensions come."""
        return frozenset[int]().union(*(self.origins[axis] for axis in axes))

    def iteration(self, parts: Sequence[jax.Array | None]) -> Self:
        """Returns the weight in an iteration of a loop that slices it; `parts` are the slices of `loop_arrays`."""
        array, scale, input_scale = parts
        kept = self.input_scale if input_scale is None else input_scale
        assert array is not None
        return dataclasses.replace(self, origins=self.origins[1:], array=array, scale=scale, input_scale=kept)

    def loop_arrays(self) -> list[jax.Array | None]:
        """Returns the arrays that a loop over the first dimension slices."""
        scale, inputs = self.scale, self.input_scale
        if scale is not None:
            scale = jnp.broadcast_to(scale, (self.array.shape[0], *scale.shape[1:]))
        return [self.array, scale, inputs if inputs is not None and inputs.ndim else None]


def rearranged(equation: JaxprEqn, weight: Followed, others: Sequence[Any]) -> list[Followed] | None:
    """Returns the results of an equation whose first operand is a weight; None if it does more than rearrange it.

    Args:
        equation: the equation.
        weight: its first operand.
        others: its other operands, such as the position of a slice.
    """
    rule = _RULES.get(equation.primitive.name)
    return None if rule is None else rule(equation, weight, others)


def _same(equation: JaxprEqn, weight: Followed, others: Sequence[Any]) -> list[Followed]:
    if weight.scale is not None:
        return [weight]
    found = equation.primitive.bind(weight.array, **equation.params)
    array = found[0] if equation.primitive.multiple_results else found
    return [dataclasses.replace(weight, array=array)]


def _cast(equation: JaxprEqn, weight: Followed, others: Sequence[Any]) -> list[Followed] | None:
    """Leaves the cast to `floats`: a weight is rounded once, from the precision in which it is stored."""
    return [weight] if jnp.issubdtype(equation.params["new_dtype"], jnp.floating) else None


def _transpose(equation: JaxprEqn, weight: Followed, others: Sequence[Any]) -> list[Followed]:
    order = equation.params["permutation"]
    return [_with(weight, [weight.origins[i] for i in order], lambda x: lax.transpose(x, order))]


def _reverse(equation: JaxprEqn, weight: Followed, others: Sequence[Any]) -> list[Followed]:
    return [_with(weight, weight.origins, lambda x: lax.rev(x, equation.params["dimensions"]))]


def _squeeze(equation: JaxprEqn, weight: Followed, others: Sequence[Any]) -> list[Followed]:
    axes = equation.params["dimensions"]
    origins = [found for axis, found in enumerate(weight.origins) if axis not in axes]
    return [_with(weight, origins, lambda x: lax.squeeze(x, axes))]


def _broadcast(equation: JaxprEqn, weight: Followed, others: Sequence[Any]) -> list[Followed]:
    shape, kept = equation.params["shape"], equation.params["broadcast_dimensions"]
    origins = [weight.origins[kept.index(axis)] if axis in kept else frozenset[int]() for axis in range(len(shape))]
    array = lax.broadcast_in_dim(weight.array, shape, kept)
    scale = weight.scale
    if scale is not None:
        sizes = [scale.shape[kept.index(axis)] if axis in kept else 1 for axis in range(len(shape))]
        scale = lax.broadcast_in_dim(scale, sizes, kept)
    return [dataclasses.replace(weight, origins=tuple(origins), array=array, scale=scale)]


def _slice(equation: JaxprEqn, weight: Followed, others: Sequence[Any]) -> list[Followed]:
    params = equation.params
    start, limit, strides = (
        params["start_indices"],
        params["limit_indices"],
        params["strides"] or [1] * len(params["start_indices"]),
    )

    def cut(x: jax.Array) -> jax.Array:
        whole = [size == 1 for size in x.shape]
        return lax.slice(
            x,
            [0 if one else i for i, one in zip(start, whole, strict=True)],
            [1 if one else i for i, one in zip(limit, whole, strict=True)],
            [1 if one else i for i, one in zip(strides, whole, strict=True)],
        )

    return [_with(weight, weight.origins, cut)]


def _dynamic_slice(equation: JaxprEqn, weight: Followed, others: Sequence[Any]) -> list[Followed]:
    sizes = equation.params["slice_sizes"]

    def cut(x: jax.Array) -> jax.Array:
        start = [jnp.zeros_like(i) if size == 1 else i for i, size in zip(others, x.shape, strict=True)]
        return lax.dynamic_slice(x, start, [min(*pair) for pair in zip(sizes, x.shape, strict=True)])

    return [_with(weight, weight.origins, cut)]


def _split(equation: JaxprEqn, weight: Followed, others: Sequence[Any]) -> list[Followed]:
    sizes, axis = equation.params["sizes"], equation.params["axis"]
    arrays, scales = lax.split(weight.array, sizes, axis), [weight.scale] * len(sizes)
    if weight.scale is not None and weight.scale.shape[axis] > 1:
        scales = lax.split(weight.scale, sizes, axis)
    return [dataclasses.replace(weight, array=x, scale=s) for x, s in zip(arrays, scales, strict=True)]


def _reshape(equation: JaxprEqn, weight: Followed, others: Sequence[Any]) -> list[Followed] | None:
    new, old = equation.params["new_sizes"], weight.array.shape
    if equation.params.get("dimensions") is not None:
        return None
    origins = [frozenset[int]()] * len(new)
    scale = weight.scale
    whole, target = list(scale.shape) if scale is not None else [], [1] * len(new)
    for before, after in _groups(old, new):
        found = weight.origins_of(before)
        for axis in after:
            origins[axis] = found if new[axis] > 1 else frozenset()
        if scale is not None and any(scale.shape[axis] > 1 for axis in before):
            for axis in before:  # a dimension with one factor may be merged with one that has several
                whole[axis] = old[axis]
            for axis in after:
                target[axis] = new[axis]
    if scale is not None:
        scale = jnp.broadcast_to(scale, whole).reshape(target)
    array = lax.reshape(weight.array, new)
    return [dataclasses.replace(weight, origins=tuple(origins), array=array, scale=scale)]


def _groups(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Yields which dimensions of a shape become which dimensions of another one, in the smallest groups."""
    i = j = 0
    while i < len(old) or j < len(new):
        before, after, left, right = list[int](), list[int](), 1, 1
        while not (before or after) or left != right:
            if i < len(old) and (left <= right or j == len(new)):
                left *= old[i]
                before.append(i)
                i += 1
            else:
                right *= new[j]
                after.append(j)
                j += 1
        yield before, after


def _with(weight: Followed, origins: Sequence[frozenset[int]], function: Callable[[jax.Array], jax.Array]) -> Followed:
    """Returns a weight whose array and scales are changed alike."""
    scale = None if weight.scale is None else function(weight.scale)
    return dataclasses.replace(weight, origins=tuple(origins), array=function(weight.array), scale=scale)


_RULES: dict[str, Callable[[JaxprEqn, Followed, Sequence[Any]], list[Followed] | None]] = {
    "broadcast_in_dim": _broadcast,
    "convert_element_type": _cast,
    "copy": _same,
    "dynamic_slice": _dynamic_slice,
    "name": _same,
    "reshape": _reshape,
    "rev": _reverse,
    "sharding_constraint": _same,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "stop_gradient": _same,
    "transpose": _transpose,
}
