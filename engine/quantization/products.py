"""A product of a traced function that has a weight as one operand: a matrix product or a convolution."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn
from jax.typing import DTypeLike

from engine.quantization.views import Followed

PRODUCTS = ("dot_general", "conv_general_dilated")
"""Names of the operations that are products."""


@dataclasses.dataclass(frozen=True)
class Product:
    """An equation that multiplies its inputs by a weight.

    Attributes:
        equation: a `dot_general` or a `conv_general_dilated`.
        side: which operand the weight is, 0 or 1.
    """

    equation: JaxprEqn
    side: int

    @classmethod
    def of(cls, equation: JaxprEqn, operands: Sequence[Any]) -> "Product | None":
        """Returns the product of an equation; None if it is none, or if not exactly one operand is a weight."""
        name, sides = equation.primitive.name, [i for i, x in enumerate(operands) if isinstance(x, Followed)]
        if name not in PRODUCTS or len(sides) != 1:
            return None
        if not jnp.issubdtype(_dtype(equation), jnp.floating):
            return None
        if name == "conv_general_dilated" and (sides != [1] or equation.params["batch_group_count"] != 1):
            return None
        return cls(equation, sides[0])

    @property
    def dtype(self) -> Any:
        """The dtype of the result."""
        return _dtype(self.equation)

    @property
    def weight_dtype(self) -> Any:
        """The dtype in which the equation reads the weight."""
        aval: Any = self.equation.invars[self.side].aval
        return aval.dtype

    @property
    def _is_dot(self) -> bool:
        return self.equation.primitive.name == "dot_general"

    def contracted(self, weight: Followed) -> tuple[int, ...]:
        """Returns the dimensions of the weight over which the product sums."""
        if self._is_dot:
            return tuple(self.equation.params["dimension_numbers"][0][self.side])
        channel = self.equation.params["dimension_numbers"].rhs_spec[0]
        return tuple(axis for axis in range(weight.array.ndim) if axis != channel)

    @property
    def row_axis(self) -> int | None:
        """The dimension of the inputs that has one entry for each row; None if the product sums over it."""
        if not self._is_dot:
            return self.equation.params["dimension_numbers"].lhs_spec[0]
        return None if 0 in self.equation.params["dimension_numbers"][0][1 - self.side] else 0

    def __call__(self, x: jax.Array, weight: jax.Array, dtype: DTypeLike | None = None) -> jax.Array:
        """Returns the product.

        Args:
            x: the inputs.
            weight: the weight, rearranged as in the equation.
            dtype: in which it is summed and returned; None for that of the equation, whose operands are floats.
        """
        operands = (x, weight) if self.side == 1 else (weight, x)
        params = self.equation.params
        if dtype is not None:
            params = {**params, "precision": None, "preferred_element_type": jnp.dtype(dtype)}
        return self.equation.primitive.bind(*operands, **params)

    def result_scale(self, scale: jax.Array, rank: int) -> jax.Array:
        """Returns the scales of a weight as factors of the result.

        Args:
            scale: scales with size 1 in the dimensions over which the product sums.
            rank: number of dimensions of the inputs.
        """
        if not self._is_dot:
            axis = self.equation.params["dimension_numbers"].out_spec[1]
            return scale.reshape([scale.size if i == axis else 1 for i in range(rank)])
        contracted, batch = (pair[self.side] for pair in self.equation.params["dimension_numbers"])
        free = [axis for axis in range(scale.ndim) if axis not in (*contracted, *batch)]
        ones = [1] * (rank - len(contracted) - len(batch))
        sizes = [scale.shape[axis] for axis in free]
        parts = [*ones, *sizes] if self.side == 1 else [*sizes, *ones]
        ordered = lax.transpose(scale, (*batch, *free, *contracted))
        return ordered.reshape([*(scale.shape[axis] for axis in batch), *parts])


def _dtype(equation: JaxprEqn) -> Any:
    aval: Any = equation.outvars[0].aval
    return aval.dtype
