"""Finds the operations of a traced program that depend on the number of rows of its batch.

The rows of a loss may be apart, and its values still depend on how many they are, such as `values / len(values)`. So
the programs of two batch sizes are compared: their constants, and the dimensions of which the sizes differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from engine.training.jaxprs import inner_jaxprs
from engine.training.row_rules import ELEMENTWISE, RULES, ByRow, NoProof, Same, State, shape_of

_OF_SHAPES = frozenset(("broadcast_in_dim", "transpose", "reshape", "squeeze", "expand_dims", "tile", "iota"))


@dataclass(frozen=True)
class Difference:
    """How an operation differs between two batch sizes."""

    constants: bool = False
    """Whether a constant or a parameter differs."""
    length: bool = False
    """Whether the length of a loop differs."""
    axes: tuple[frozenset[int], ...] = ()
    """The dimensions of each operand of which the size differs."""


type Differences = dict[int, Difference]
"""id of an equation, or of a constant, of the first program -> how it differs. Others do not."""


def differences(first: Jaxpr, second: Jaxpr, constants: Sequence[Sequence[object]] = ((), ())) -> Differences:
    """Returns how the program of a batch differs from that of a larger batch.

    Args:
        first: the program of the batch.
        second: that of the larger batch.
        constants: the values of the constants of both.
    """
    found: Differences = {}
    if len(constants[0]) != len(constants[1]):
        found |= {id(constant): Difference(constants=True) for constant in first.constvars}
    for constant, a, b in zip(first.constvars, *constants, strict=False):
        if a is not b and _differ(a, b):
            found[id(constant)] = Difference(constants=True)
    _compare(first, second, found)
    return found


def check_count(difference: Difference, equation: JaxprEqn, operands: Sequence[State], rows: int) -> None:
    """Raises NoProof if the results of an operation may depend on the number of rows.

    A dimension of which the size differs is followed like that of the rows: its entries must not meet.
    """
    name = equation.primitive.name
    if difference.constants:
        raise NoProof
    if name in ELEMENTWISE or name in _OF_SHAPES:
        return
    inner = max((state.inner for state in operands if isinstance(state, ByRow)), default=1)
    followed: list[State] = []
    for axes, state in zip(difference.axes, operands, strict=True):
        grown = ByRow(min(axes), inner) if axes and isinstance(state, Same) else state
        if not axes <= ({grown.axis} if isinstance(grown, ByRow) else set()):
            raise NoProof
        followed.append(grown)
    if any(isinstance(state, ByRow) for state in followed):
        if name not in RULES:
            raise NoProof
        RULES[name](equation, followed, rows)


def _compare(first: Jaxpr, second: Jaxpr, found: Differences) -> None:
    if [x.primitive.name for x in first.eqns] != [x.primitive.name for x in second.eqns]:
        found |= {id(equation): Difference(constants=True) for equation in first.eqns}
        return
    for a, b in zip(first.eqns, second.eqns, strict=True):
        axes = tuple(_axes(shape_of(x), shape_of(y)) for x, y in zip(a.invars, b.invars, strict=True))
        literals = (
            (x.val for x in a.invars if isinstance(x, Literal)),
            (x.val for x in b.invars if isinstance(x, Literal)),
        )
        constants = any(_differ(x, y) for x, y in zip(*literals, strict=True)) or _parameters_differ(a, b, axes)
        length = a.params.get("length") != b.params.get("length")
        known = found.get(id(a))
        if known is not None:  # an inner program that is called several times
            constants, length = constants or known.constants, length or known.length
            axes = tuple(x | y for x, y in zip(axes, known.axes, strict=True)) if known.axes else axes
        if constants or length or any(axes):
            found[id(a)] = Difference(constants, length, axes)
        for x, y in zip(inner_jaxprs(a), inner_jaxprs(b), strict=True):
            _compare(x, y, found)


def _axes(a: Sequence[int], b: Sequence[int]) -> frozenset[int]:
    """Returns the dimensions of which the size differs; all of them if the dimensions do."""
    if len(a) != len(b):
        return frozenset(range(len(a)))
    return frozenset(axis for axis, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)


def _parameters_differ(a: JaxprEqn, b: JaxprEqn, axes: Sequence[frozenset[int]]) -> bool:
    for name, value in a.params.items():
        other = b.params[name]
        if name in ("shape", "new_sizes", "length") or not (_is_plain(value) and _is_plain(other)):
            continue
        if value == other or repr(value) == repr(other):  # NaN differs from itself
            continue
        if name not in ("limit_indices", "slice_sizes") or not axes or not _axes(value, other) <= axes[0]:
            return True  # only a slice of whole dimensions grows with them
    return False


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | np.generic)


def _differ(a: object, b: object) -> bool:
    """Whether two constants of the same shape differ."""
    try:
        x, y = np.asarray(a), np.asarray(b)
        return x.shape == y.shape and not np.array_equal(x, y, equal_nan=x.dtype.kind in "fc")
    except TypeError:  # random keys
        return a is not b
