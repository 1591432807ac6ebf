"""The two small matrices of an adapter: their shapes, logical axes and initial values.

A kernel is treated as a matrix `[*leading, in, out]`: `leading` are dimensions of layers and experts, and the window of
a convolution belongs to `in`. Matrix A is `[*leading, in, rank]`, matrix B `[*leading, rank, out]`.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from engine.parallel.rules import STACKED

LEADING = (*STACKED, "expert")
"""Logical axes of dimensions that index matrices."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """A kernel as matrices `[*leading, in, out]`, and the logical axes of these dimensions; None without names."""

    leading: tuple[int, ...]
    size_in: int
    size_out: int
    axes: tuple[str | None, ...] | None

    def axes_of(self, *last: str | None) -> dict[str, Any]:
        """Returns the metadata of a parameter whose dimensions after the leading ones have these logical axes."""
        if self.axes is None:
            return {}
        names = self.axes[: len(self.leading)]
        return {"logical_axes": names if len(self.axes) == len(self.leading) else (*names, *last)}

    @property
    def axis_in(self) -> str | None:
        """Logical axis of `in`, None if it joins several dimensions."""
        return self.axes[-2] if self.axes and len(self.axes) == len(self.leading) + 2 else None

    @property
    def axis_out(self) -> str | None:
        """Logical axis of `out`."""
        return self.axes[-1] if self.axes and len(self.axes) > len(self.leading) else None


def shape_of(module: nnx.Module, kernel: nnx.Param) -> Shape | None:
    """Returns a kernel as matrices; None for a parameter that is no matrix, such as a bias or a scale."""
    sizes, metadata = tuple(kernel.shape), kernel.get_metadata()
    names = metadata.get("logical_axes", metadata.get("out_sharding"))
    count = 0
    while names is not None and count < len(names) and names[count] in LEADING:
        count += 1
    leading, rest = sizes[:count], sizes[count:]
    if len(rest) < 2 or not jnp.issubdtype(kernel.dtype, jnp.floating):
        return None
    outs = len(module.out_features) if isinstance(module, nnx.LinearGeneral) else 1
    axes = None if names is None else tuple(names)
    if axes is not None and len(axes) > count and len(rest) != 2:  # the joined dimensions have no common name
        axes = (*axes[:count], None, axes[-1] if outs == 1 else None)
    return Shape(leading, math.prod(rest[:-outs]), math.prod(rest[-outs:]), axes)


def initial(shape: Shape, rank: int, key: jax.Array) -> tuple[nnx.Param, nnx.Param]:
    """Returns the matrices A and B, which begin as in PEFT: Kaiming uniform with a = sqrt(5), and zeros."""
    bound = 1 / math.sqrt(shape.size_in)
    a = jax.random.uniform(key, (math.prod(shape.leading), shape.size_in, rank), jnp.float32, -bound, bound)
    b = jnp.zeros((*shape.leading, rank, shape.size_out))
    return (
        nnx.Param(a.reshape(*shape.leading, *a.shape[1:]), optional=True, **shape.axes_of(shape.axis_in, None)),
        nnx.Param(b, optional=True, **shape.axes_of(None, shape.axis_out)),
    )


def initial_magnitude(shape: Shape) -> nnx.Param:
    """Returns what DoRA adds to the norm of each column of the kernel: zeros `[*leading, out]`."""
    zeros = jnp.zeros((*shape.leading, shape.size_out))
    return nnx.Param(zeros, optional=True, **shape.axes_of(shape.axis_out))


def layer_numbers(shape: Shape) -> nnx.Param:
    """Returns the number of each layer, int32 `[*leading]`, by which layers of a stack draw different dropout."""
    numbers = jnp.arange(math.prod(shape.leading), dtype=jnp.int32).reshape(shape.leading)
    return nnx.Param(numbers, optional=True, trained=False, **shape.axes_of())
