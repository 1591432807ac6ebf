"""Frozen kernels in fewer bits: int8 with a scale for each column, and nf4 (Dettmers et al. 2023, arXiv:2305.14314).

`qwix` is not used: it changes modules while they are traced, which fails in a stack of layers, and its arrays are
nested, while the state of a run has one array for each path.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from engine.adapters.matrices import Shape
from engine.base.errors import TaskError
from engine.checkpoint.warm_start import OPTIONAL, STORED_AS
from engine.training.model import TRAINED

KINDS = ("int8", "nf4")
BLOCK = 64
"""Inputs of a column that share a scale in nf4."""
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""The numbers of nf4, by their codes: quantiles of a normal distribution (appendix E)."""


@dataclasses.dataclass(frozen=True)
class StoredAs:
    """The form in which a kernel is stored: metadata of its parameter, for `engine.checkpoint.warm_start`.

    Attributes:
        kind: one of `KINDS`.
        leading: number of leading dimensions of the kernel.
    """

    kind: str
    leading: int

    def spec(self, stored: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        """Returns how the kernel is read, for the array of codes."""
        return jax.ShapeDtypeStruct(self.shape(stored.shape), jnp.float32, sharding=stored.sharding)

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the kernel, or of one layer of it. Two codes of nf4 share a byte."""
        return (*stored[:-2], 2 * stored[-2], stored[-1]) if self.kind == "nf4" else stored

    def encode(self, kernel: jax.Array) -> dict[str, jax.Array]:
        """Returns the arrays for a kernel: end of the path -> codes, and float32 scales."""
        matrix = kernel.astype(jnp.float32).reshape(*kernel.shape[: self.leading], -1, kernel.shape[-1])
        if self.kind == "int8":
            scale = _positive(jnp.abs(matrix).max(-2)) / 127
            codes = jnp.round(matrix / scale[..., None, :]).astype(jnp.int8)
            return {"": codes.reshape(kernel.shape), "_scale": scale}
        blocks = matrix.reshape(*matrix.shape[:-2], -1, BLOCK, matrix.shape[-1])
        scale = _positive(jnp.abs(blocks).max(-2))
        limits = jnp.asarray([(low + high) / 2 for low, high in itertools.pairwise(NF4)])
        codes = jnp.searchsorted(limits, blocks / scale[..., None, :]).astype(jnp.uint8).reshape(kernel.shape)
        pairs = codes.reshape(*codes.shape[:-2], -1, 2, codes.shape[-1])
        return {"": pairs[..., 0, :] * 16 + pairs[..., 1, :], "_scale": scale}

    def decode(self, codes: jax.Array, scale: jax.Array) -> jax.Array:
        """Returns the kernel, or that of one layer, in the dtype of the scales."""
        shape = self.shape(codes.shape)
        if self.kind == "int8":
            matrix = codes.reshape(*scale.shape[:-1], -1, scale.shape[-1]).astype(scale.dtype)
            return (matrix * scale[..., None, :]).reshape(shape)
        numbers = jnp.stack([codes // 16, codes % 16], axis=-2).reshape(shape)
        blocks = jnp.asarray(NF4, scale.dtype)[numbers].reshape(*scale.shape[:-1], BLOCK, scale.shape[-1])
        return (blocks * scale[..., None, :]).reshape(shape)


def _positive(x: jax.Array) -> jax.Array:
    return jnp.where(x == 0, 1, x)


def quantize(module: Any, name: str, shape: Shape, kind: str, path: str) -> None:
    """Stores a kernel of a module as codes, with scales in the attribute `NAME_scale`.

    Raises:
        TaskError: nf4 does not fit its shape.
    """
    param = vars(module)[name]
    if kind == "nf4" and (shape.size_in % BLOCK or param.shape[-2] % 2 or isinstance(module, nnx.LinearGeneral)):
        raise TaskError(
            f"{path} {list(param.shape)}: nf4 stores blocks of {BLOCK} inputs of dense layers and convolutions. Use "
            "base='int8', or another match."
        )
    outs = shape.size_out if param.shape[-1] == shape.size_out else 0
    if not outs:
        raise TaskError(f"{path} {list(param.shape)}: its outputs have several dimensions. Use base='bfloat16'.")
    found = StoredAs(kind, len(shape.leading))
    arrays = found.encode(param.get_value())
    axes = shape.axes_of(shape.axis_out) if kind == "int8" else shape.axes_of(None, shape.axis_out)
    scale = nnx.Param(arrays["_scale"], **{OPTIONAL: True, TRAINED: False}, **axes)
    setattr(module, f"{name}_scale", scale)
    param.set_value(arrays[""])
    param.set_metadata(**{STORED_AS: found, TRAINED: False})


def kernel_of(module: nnx.Module, name: str) -> jax.Array:
    """Returns the kernel of a module without its adapters."""
    held: Mapping[str, Any] = vars(module)
    stored = stored_as(held[name])
    value = held[name].get_value()
    return value if stored is None else stored.decode(value, held[f"{name}_scale"].get_value())


def stored_as(kernel: nnx.Variable) -> StoredAs | None:
    """Returns the form in which a kernel is stored; None for a kernel of floats."""
    return kernel.get_metadata().get(STORED_AS)
