"""How the operations of a traced program keep the rows of a batch apart: one rule for each kind of operation.

A rule takes the equation, the states of its operands and the number of rows, and returns the state of its results. It
raises `NoProof` if rows may meet, or if it does not know.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jax.core import ShapedArray
from jax.extend.core import JaxprEqn


@dataclass(frozen=True)
class Same:
    """A value that does not depend on the batch."""

    varies: frozenset[int] = frozenset()
    """Dimensions along which its entries may differ. If the rows lie along one, the position of a row matters."""


@dataclass(frozen=True)
class ByRow:
    """A value whose entry i along `axis` depends only on row (i // inner) % rows."""

    axis: int
    inner: int = 1


@dataclass(frozen=True)
class Mixed:
    """A value whose entries may depend on several rows, or on the position of a row in the batch."""

    place: str
    """The first operation that is not proved to keep the rows apart, such as "dot_general (clip.py:34 in loss)"."""


@dataclass(frozen=True)
class Each:
    """A value of one row, inside a loop that takes the rows one after the other."""


type State = Same | ByRow | Mixed | Each
type Rule = Callable[[JaxprEqn, Sequence[State], int], State]


class NoProof(Exception):
    """Rows may meet."""


def shape_of(atom: object) -> tuple[int, ...]:
    """Returns the shape of a variable or a literal of a jaxpr."""
    return tuple(getattr(getattr(atom, "aval", None), "shape", ()))


def is_array(atom: object) -> bool:
    """Returns whether a variable or a literal of a jaxpr is an array; a mutable reference (`jax.new_ref`) is none."""
    return isinstance(getattr(atom, "aval", None), ShapedArray)


def anything(shape: Sequence[int]) -> Same:
    """Returns the state of a value, such as a parameter, that does not depend on the batch and may vary everywhere."""
    return Same(frozenset(axis for axis, size in enumerate(shape) if size != 1))


def combined(operands: Sequence[State]) -> State:
    """Returns the state of a value each of whose entries depends on those at the same place in the operands."""
    found = {operand for operand in operands if not isinstance(operand, Same)}
    varies = frozenset().union(*(operand.varies for operand in operands if isinstance(operand, Same)))
    if not found:
        return Same(varies)
    rows = found.pop()
    _require(not found and isinstance(rows, ByRow) and rows.axis not in varies)
    return rows


def _require(condition: bool) -> None:
    if not condition:
        raise NoProof


def _rows(*operands: State) -> ByRow:
    """Returns the rows of operands of equal dimensions."""
    rows = combined(operands)
    if not isinstance(rows, ByRow):
        raise NoProof
    return rows


def _axes(state: State) -> tuple[int, ...]:
    return (state.axis,) if isinstance(state, ByRow) else ()


def _elementwise(equation: JaxprEqn, operands: Sequence[State], count: int) -> State:
    rank = max(len(shape_of(x)) for x in equation.outvars)
    _require(all(len(shape_of(x)) in (0, rank) for x in equation.invars))
    return combined(operands)


def _within(parameter: str) -> Rule:
    """Returns the rule of operations that mix entries along the dimensions in a parameter, and keep the shape."""

    def rule(equation: JaxprEqn, operands: Sequence[State], count: int) -> State:
        rows, axes = _rows(*operands), equation.params[parameter]
        rank = len(shape_of(equation.invars[0]))
        _require(rows.axis not in {axis % rank for axis in (axes if isinstance(axes, tuple) else (axes,))})
        return rows

    return rule


def _reduction(equation: JaxprEqn, operands: Sequence[State], count: int) -> State:
    state, axes = combined(operands), equation.params["axes"]
    kept = [axis for axis in range(len(shape_of(equation.invars[0]))) if axis not in axes]
    if isinstance(state, Same):
        return Same(frozenset(kept.index(axis) for axis in state.varies if axis in kept))
    rows = _rows(state)
    _require(rows.axis in kept)
    return ByRow(kept.index(rows.axis), rows.inner)


def _broadcast(equation: JaxprEqn, operands: Sequence[State], count: int) -> State:
    dims, [state, *_] = equation.params["broadcast_dimensions"], operands
    if isinstance(state, Same):
        return Same(frozenset(dims[axis] for axis in state.varies))
    rows = _rows(state)
    return ByRow(dims[rows.axis], rows.inner)


def _reshape(equation: JaxprEqn, operands: Sequence[State], count: int) -> State:
    """Follows the rows by their distance in the flat array, which a reshape keeps."""
    before, after = shape_of(equation.invars[0]), shape_of(equation.outvars[0])
    if isinstance(operands[0], Same):
        return operands[0] if operands[0] == Same() else anything(after)
    rows = _rows(*operands)
    _require(equation.primitive.name != "reshape" or equation.params["dimensions"] is None)  # they may change places
    stride = rows.inner * math.prod(before[rows.axis + 1 :])
    for axis, size in enumerate(after):
        below = math.prod(after[axis + 1 :])
        if size > 1 and stride % below == 0 and (below * size) % (stride * count) == 0:
            return ByRow(axis, stride // below)
    raise NoProof


def _transpose(equation: JaxprEqn, operands: Sequence[State], count: int) -> State:
    places, [state] = list(equation.params["permutation"]), operands
    if isinstance(state, Same):
        return Same(frozenset(places.index(axis) for axis in state.varies))
    rows = _rows(state)
    return ByRow(places.index(rows.axis), rows.inner)


def _whole_axis(equation: JaxprEqn, operands: Sequence[State], count: int) -> State:
    """Keeps the rows of a slice, or of a padded array, that has all of them in order."""
    rows = _rows(operands[0])
    _require(all(isinstance(x, Same) for x in operands[1:]))
    _require(shape_of(equation.outvars[0])[rows.axis] == shape_of(equation.invars[0])[rows.axis])
    if padding := equation.params.get("padding_config"):
        _require(tuple(padding[rows.axis]) == (0, 0, 0))
    return rows


def _stack(equation: JaxprEqn, operands: Sequence[State], count: int) -> State:
    rows, axis = _rows(*operands), equation.params["axis"]
    return ByRow(rows.axis + (axis <= rows.axis), rows.inner)


def _unstack(equation: JaxprEqn, operands: Sequence[State], count: int) -> State:
    rows, axis = _rows(*operands), equation.params["axis"]
    _require(axis != rows.axis)
    return ByRow(rows.axis - (axis < rows.axis), rows.inner)


def _split(equation: JaxprEqn, operands: Sequence[State], count: int) -> State:
    rows = _rows(*operands)
    _require(equation.params["axis"] != rows.axis)
    return rows


def _update_slice(equation: JaxprEqn, operands: Sequence[State], count: int) -> State:
    _require(all(isinstance(x, Same) for x in operands[2:]))
    rows = _rows(*operands[:2])
    _require(shape_of(equation.invars[1])[rows.axis] == shape_of(equation.invars[0])[rows.axis])
    return rows


def _dot(equation: JaxprEqn, operands: Sequence[State], count: int) -> State:
    contracted, batched = equation.params["dimension_numbers"]
    ranks = [len(shape_of(x)) for x in equation.invars]
    places: set[ByRow] = set()
    for side, operand in enumerate(operands):
        if isinstance(operand, Same):
            continue
        rows, batch = _rows(operand), list(batched[side])
        _require(rows.axis not in contracted[side])
        if rows.axis in batch:  # the other operand has a matrix for each row
            _check_batched(operands[1 - side], ByRow(batched[1 - side][batch.index(rows.axis)], rows.inner))
            places.add(ByRow(batch.index(rows.axis), rows.inner))
            continue
        free = [axis for axis in range(ranks[side]) if axis not in batch and axis not in contracted[side]]
        before = len(batch) + (ranks[0] - len(batch) - len(contracted[0]) if side else 0)
        places.add(ByRow(before + free.index(rows.axis), rows.inner))
    _require(len(places) == 1)
    return places.pop()


def _check_batched(state: State, rows: ByRow) -> None:
    """Requires an operand that has its rows there, or the same entries for all rows."""
    _require(rows.axis not in state.varies if isinstance(state, Same) else state == rows)


def _convolution(equation: JaxprEqn, operands: Sequence[State], count: int) -> State:
    rows, numbers = _rows(operands[0]), equation.params["dimension_numbers"]
    _require(isinstance(operands[1], Same) and equation.params["batch_group_count"] == 1)
    _require(rows.axis == numbers.lhs_spec[0])
    return ByRow(numbers.out_spec[0], rows.inner)


def _window(equation: JaxprEqn, operands: Sequence[State], count: int) -> State:
    """Keeps the rows of a pooling whose windows lie within a row."""
    rows, params = _rows(operands[0]), equation.params
    _require(all(isinstance(x, Same) for x in operands[1:]))
    _require(params["window_dimensions"][rows.axis] == params["window_strides"][rows.axis] == 1)
    _require(params["base_dilation"][rows.axis] == 1 and tuple(params["padding"][rows.axis]) == (0, 0))
    return rows


def _last_axes(dimensions: int) -> Rule:
    """Returns the rule of operations on so many last dimensions, such as a Cholesky decomposition."""

    def rule(equation: JaxprEqn, operands: Sequence[State], count: int) -> State:
        rows = _rows(*operands)
        _require(rows.axis < len(shape_of(equation.invars[0])) - dimensions)
        return rows

    return rule


def _fourier(equation: JaxprEqn, operands: Sequence[State], count: int) -> State:
    return _last_axes(len(equation.params["fft_lengths"]))(equation, operands, count)


def _leading(equation: JaxprEqn, operands: Sequence[State], count: int) -> State:
    """Keeps the rows of operations that add or remove dimensions at the end, such as those on random keys."""
    rows = _rows(*operands)
    pairs = (*zip(equation.invars, operands, strict=True), *((x, rows) for x in equation.outvars))
    leading = {shape_of(x)[: rows.axis + 1] for x, state in pairs if shape_of(x) or isinstance(state, ByRow)}
    _require(len(leading) == 1)
    return rows


def _gather(equation: JaxprEqn, operands: Sequence[State], count: int) -> State:
    (operand, indices), numbers = operands, equation.params["dimension_numbers"]
    sizes, rank = equation.params["slice_sizes"], len(shape_of(equation.outvars[0]))
    of_indices = [axis for axis in range(rank) if axis not in numbers.offset_dims]
    if isinstance(operand, Same):
        rows = _rows(indices)
        _require(rows.axis < len(of_indices))
        for there, axis in zip(numbers.start_indices_batching_dims, numbers.operand_batching_dims, strict=True):
            _require(there != rows.axis or axis not in operand.varies)
        return ByRow(of_indices[rows.axis], rows.inner)
    rows = _rows(operand)
    if rows.axis in numbers.operand_batching_dims:
        axis = numbers.start_indices_batching_dims[numbers.operand_batching_dims.index(rows.axis)]
        _check_batched(indices, ByRow(axis, rows.inner))
        return ByRow(of_indices[axis], rows.inner)
    dropped = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    _require(isinstance(indices, Same) and rows.axis not in dropped)
    _require(sizes[rows.axis] == shape_of(equation.invars[0])[rows.axis])
    kept = [axis for axis in range(len(sizes)) if axis not in dropped]
    return ByRow(numbers.offset_dims[kept.index(rows.axis)], rows.inner)


def _scatter(equation: JaxprEqn, operands: Sequence[State], count: int) -> State:
    (operand, indices, updates), numbers = operands, equation.params["dimension_numbers"]
    shape, updated = (shape_of(equation.invars[i]) for i in (0, 2))
    of_indices = [axis for axis in range(len(updated)) if axis not in numbers.update_window_dims]
    inner = max(state.inner for state in operands if isinstance(state, ByRow))
    for axis, there in zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True):
        triple = ((operand, axis), (indices, there), (updates, of_indices[there]))
        if any(place in _axes(state) for state, place in triple):
            for state, place in triple:
                _check_batched(state, ByRow(place, inner))
            return ByRow(axis, inner)
    _require(isinstance(indices, Same))
    dropped = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    kept = [axis for axis in range(len(shape)) if axis not in dropped]
    for axis, there in zip(kept, numbers.update_window_dims, strict=True):
        if axis in _axes(operand) or there in _axes(updates):
            _require(shape[axis] == updated[there])
            _check_batched(operand, ByRow(axis, inner))
            _check_batched(updates, ByRow(there, inner))
            return ByRow(axis, inner)
    raise NoProof


_ELEMENTWISE = """
abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp complex conj
convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2 eq_to expm1 floor ge gt igamma
igamma_grad_a igammac imag integer_pow is_finite le le_to lgamma log log1p log2 logistic lt lt_to max min mul mulhi
name ne neg nextafter not one_minus_square or polygamma population_count pow random_gamma random_gamma_grad real
reduce_precision regularized_incomplete_beta rem round rsqrt select_n shift_left shift_right_arithmetic
shift_right_logical sharding_constraint sign sin sinh sqrt square stop_gradient sub tan tanh threefry2x32 xor zeta clz
random_seed
"""
ELEMENTWISE = frozenset(_ELEMENTWISE.split())
"""Primitives whose entries depend on the entries of the operands at the same place."""

_REDUCTIONS = "sum max min prod and or xor"
REDUCTIONS = (*(f"reduce_{name}" for name in _REDUCTIONS.split()), "argmax", "argmin")
_ON_KEYS = "random_bits random_wrap random_unwrap random_split random_fold_in random_clone bitcast_convert_type"

RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(REDUCTIONS, _reduction),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _within("axis")),
    **dict.fromkeys(("sort", "concatenate"), _within("dimension")),
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _reshape),
    **dict.fromkeys(("slice", "dynamic_slice", "pad"), _whole_axis),
    **dict.fromkeys(("reduce_window", "reduce_window_sum", "reduce_window_max", "reduce_window_min"), _window),
    **dict.fromkeys(("cholesky", "lu", "eigh", "svd", "qr", "triangular_solve", "householder_product"), _last_axes(2)),
    **dict.fromkeys(_ON_KEYS.split(), _leading),
    **dict.fromkeys(("scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max"), _scatter),
    "top_k": _within("axis"),
    "fft": _fourier,
    "tile": _elementwise,  # repeats all rows in their order
    "rev": _within("dimensions"),
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "split": _split,
    "stack": _stack,
    "unstack": _unstack,
    "dynamic_update_slice": _update_slice,
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "gather": _gather,
}
"""Primitive -> its rule. All of its results have the same state."""

_OF_SHAPES = "broadcast_in_dim transpose reshape squeeze expand_dims tile"
FOR_SAME = frozenset((*ELEMENTWISE, *REDUCTIONS, *_OF_SHAPES.split()))
"""Primitives whose rule also holds for operands that are all `Same`; results of others may vary everywhere."""
