"""The matrices among the parameters, in the form [matrices, rows, columns], and the shares of the devices in them.

`optax.contrib.MuonDimensionNumbers` names the dimensions of a matrix. A parameter with other dimensions, such as a
stack of layers or experts, holds several matrices. A parameter without matrix has None.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from optax.contrib import MuonDimensionNumbers

from engine.base.types import PyTree
from engine.parallel.layout import current

type Matrices = Callable[[Any], Any]
"""Function of the parameters that returns MuonDimensionNumbers, or None, for each of them."""

MATRIX, OTHER = "matrix", "other"
"""Labels of the two parts of the state of `partitioned`."""


@dataclasses.dataclass(frozen=True)
class MatrixForm:
    """Converts a parameter to its matrices, `[matrices, rows, columns]`, and back."""

    shape: tuple[int, ...]
    rows: tuple[int, ...]
    """Dimensions over which the product with activations sums."""
    columns: tuple[int, ...]
    """Dimensions of the result of the product."""

    @classmethod
    def of(cls, x: jax.Array, numbers: MuonDimensionNumbers) -> "MatrixForm":
        """Returns the form of a parameter."""
        rows, columns = (
            tuple(i % x.ndim for i in ([found] if isinstance(found, int) else found))
            for found in (numbers.reduction_axis, numbers.output_axis)
        )
        return cls(tuple(x.shape), rows, columns)

    @property
    def leading(self) -> tuple[int, ...]:
        """Sizes of the dimensions that index matrices."""
        return tuple(self.shape[i] for i in self._order[: len(self.shape) - len(self.rows) - len(self.columns)])

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a matrix."""
        return math.prod(self.shape[i] for i in self.rows), math.prod(self.shape[i] for i in self.columns)

    @property
    def _order(self) -> tuple[int, ...]:
        inner = (*self.rows, *self.columns)
        return (*(i for i in range(len(self.shape)) if i not in inner), *inner)

    def split(self, x: jax.Array) -> jax.Array:
        """Returns the matrices of a parameter."""
        return x.transpose(self._order).reshape(-1, *self.size)

    def join(self, matrices: jax.Array) -> jax.Array:
        """Returns the parameter of its matrices."""
        order = self._order
        inverse = sorted(range(len(order)), key=lambda i: order[i])
        return matrices.reshape([self.shape[i] for i in order]).transpose(inverse)


def two_dimensions(params: PyTree) -> PyTree:
    """Returns the matrices of a model that nothing is known of: its arrays of two dimensions."""
    return jax.tree.map(lambda x: MuonDimensionNumbers((0,), (1,)) if jnp.ndim(x) == 2 else None, params)


def forms(matrices: Matrices, params: PyTree) -> PyTree:
    """Returns the MatrixForm of each parameter, or None; a masked parameter stays masked."""
    # optax passes an object without leaves in place of the parameters when it looks for their places in a state.
    if not jax.tree.leaves(params):
        return params

    def form(x: Any, numbers: MuonDimensionNumbers | None) -> MatrixForm | optax.MaskedNode | None:
        if is_masked(x):
            return x
        return None if numbers is None else MatrixForm.of(x, numbers)

    return jax.tree.map(form, params, matrices(params), is_leaf=is_masked)


def is_masked(x: object) -> bool:
    """Returns whether a node stands for a parameter that another transformation updates."""
    return isinstance(x, optax.MaskedNode)


def partitioned(
    matrix: optax.GradientTransformation, other: optax.GradientTransformation, matrices: Matrices
) -> optax.GradientTransformationExtraArgs:
    """Returns a transformation that updates matrices with one transformation, and other parameters with another."""

    def labels(params: PyTree) -> PyTree:
        return jax.tree.map(
            lambda x, form: x if is_masked(x) else OTHER if form is None else MATRIX,
            params,
            forms(matrices, params),
            is_leaf=is_masked,
        )

    return optax.partition({MATRIX: matrix, OTHER: other}, labels)


def in_stacks[T: PyTree](function: Callable[..., T], *columns: Sequence[jax.Array]) -> list[T]:
    """Returns `function` of the arrays of each parameter, computed on stacks of the matrices of equal size.

    On a mesh each device computes its share of each stack, without communication.

    Args:
        function: function of arrays `[matrices, ...]`, each of which it treats independently; so are its results.
        columns: for each argument of the function, an array `[matrices, ...]` of each parameter.
    """
    groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for i, arrays in enumerate(zip(*columns, strict=True)):
        groups.setdefault(tuple(x.shape[1:] for x in arrays), []).append(i)
    found: dict[int, T] = {}
    for group in groups.values():
        result = on_shares(function, *(jnp.concatenate([column[i] for i in group]) for column in columns))
        first = 0
        for i in group:
            last = first + len(columns[0][i])
            found[i] = jax.tree.map(lambda x, a=first, b=last: x[a:b], result)
            first = last
    return [found[i] for i in range(len(found))]


def on_shares[T: PyTree](function: Callable[..., T], *stacks: jax.Array) -> T:
    """Returns `function` of stacks `[matrices, ...]`, of which each device of the mesh computes its share."""
    mesh = current().mesh
    if mesh is None or mesh.size == 1:
        return function(*stacks)
    count = len(stacks[0])
    padded = [jnp.pad(x, ((0, -count % mesh.size), *[(0, 0)] * (x.ndim - 1))) for x in stacks]
    axes = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
    for number in range(1, len(axes)):
        padded = [_split(x, mesh, axes[:number]) for x in padded]
    spec = PartitionSpec(tuple(axes))
    result = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(*padded)
    for number in reversed(range(len(axes))):
        result = jax.tree.map(lambda x, over=axes[:number]: _split(x, mesh, over), result)
    return jax.tree.map(lambda x: x[:count], result)


def _split(x: jax.Array, mesh: Mesh, axes: Sequence[str]) -> jax.Array:
    """Returns a stack that is split over these axes along its first dimension, and otherwise as XLA likes.

    XLA moves one axis at a time by an all-to-all. It gathers an array whose split changes along several axes at once.
    """
    others = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(tuple(axes) or None, *others)))
