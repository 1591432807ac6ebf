"""What a traced program does with each parameter: which ones it multiplies as matrices, and which are output layers.

It follows the parameters through the equations of a jaxpr, so it depends on no name. Reshaped, transposed, sliced and
scaled parameters, and the layers of a scan, are still followed. Kernels that JAX cannot look into are not.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from engine.training.jaxprs import inner_jaxprs

type Axes = tuple[tuple[int, ...], ...]
"""For each dimension of an array the dimensions of a parameter that it holds; () for a broadcast one."""

LOOKED_UP, CONVOLUTION, ELEMENTWISE = "its rows are looked up", "a convolution", "applied element by element"
TIED = "its rows are looked up, and it is multiplied"
UNUSED, VECTOR, OPAQUE = "in no product", "multiplied, but not as a matrix", "used by a kernel or a callback"

_SAME_DIMENSIONS = ("slice", "dynamic_slice", "rev", "pad", "split", "concatenate")
_MAX_ROUNDS = 20  # of a loop whose carry depends on itself


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A parameter that is multiplied. Dimensions that are in neither tuple index matrices: layers and experts."""

    reduction: tuple[int, ...]
    """Dimensions over which the product sums."""
    output: tuple[int, ...]
    is_last: bool = True
    """Whether no product with another parameter follows: an output layer."""


type Use = Matrix | str
"""How a parameter is used; a phrase if it is no matrix."""


@dataclasses.dataclass(frozen=True)
class _Value:
    """What is known of an array: the parameters that it holds, and what it has been computed from."""

    views: tuple[tuple[str, Axes], ...] = ()
    is_data: bool = False  # depends on the batch
    after: frozenset[str] = frozenset()  # parameters from whose product it was computed, without another one since


def uses_of(
    jaxpr: Jaxpr, params: Mapping[int, str], data: Collection[int], *, only_first: bool = False
) -> dict[str, Use]:
    """Returns path -> use of each parameter.

    Args:
        jaxpr: a traced program.
        params: index of an input -> path of the parameter.
        data: indices of the inputs that hold the batch; the other inputs are like constants.
        only_first: consider only the first use of each parameter, in a program that also computes gradients.
    """
    walk, values = _Walk(only_first), []
    for i, x in enumerate(jaxpr.invars):
        axes = tuple((dimension,) for dimension in range(len(_shape(x))))
        values.append(_Value(((params[i], axes),)) if i in params else _Value(is_data=i in data))
    walk.run(jaxpr, values)
    found: dict[str, Use] = {}
    for path in params.values():
        use = walk.found.get(path, UNUSED)
        found[path] = dataclasses.replace(use, is_last=path not in walk.hidden) if isinstance(use, Matrix) else use
    return found


class _Walk:
    """Walks a jaxpr in its order; collects the use of each parameter."""

    def __init__(self, only_first: bool):
        self._only_first = only_first
        self.found: dict[str, Use] = {}
        self.hidden: set[str] = set()
        """Parameters whose product enters that of another one."""
        self._equations: dict[str, JaxprEqn] = {}  # path -> the equation of the first product

    def run(self, jaxpr: Jaxpr, values: Sequence[_Value]) -> list[_Value]:
        """Returns the values of the results for those of the inputs."""
        known: dict[Var, _Value] = dict(zip(jaxpr.invars, values, strict=True))

        def read(x: Var | Literal) -> _Value:
            return _Value() if isinstance(x, Literal) else known.get(x, _Value())

        for equation in jaxpr.eqns:
            results = self._equation(equation, [read(x) for x in equation.invars])
            for x, value in zip(equation.outvars, results, strict=True):
                known[x] = value if _is_differentiable(x) else dataclasses.replace(value, after=frozenset())
        return [read(x) for x in jaxpr.outvars]

    def _equation(self, equation: JaxprEqn, values: list[_Value]) -> list[_Value]:
        name, inner = equation.primitive.name, list(inner_jaxprs(equation))
        if name in ("dot_general", "ragged_dot_general"):
            return [self._product(equation, values[0], values[1])]
        if name == "scan":
            return self._scan(equation, inner[0], values)
        if name == "while":
            tests, consts = (equation.params[key] for key in ("cond_nconsts", "body_nconsts"))
            begin = tests + consts
            return self._loop(equation.params["body_jaxpr"].jaxpr, values[tests:begin], values[begin:], [])
        if name == "cond":
            branches = [self.run(branch, values[1:]) for branch in inner]
            return [self._joined([values[0], *found]) for found in zip(*branches, strict=True)]
        if name == "optimization_barrier":
            return values
        if len(inner) == 1 and len(inner[0].invars) == len(values) and len(inner[0].outvars) == len(equation.outvars):
            return self.run(inner[0], values)
        return self._other(equation, values, is_opaque=bool(inner) or "call" in name)

    def _other(self, equation: JaxprEqn, values: list[_Value], is_opaque: bool) -> list[_Value]:
        """Returns the values of an equation that is neither a product nor a loop nor a call."""
        name, joined = equation.primitive.name, self._joined(values)
        views: list[tuple[str, Axes]] = []
        for value, x in zip(values, equation.invars, strict=True):
            for path, axes in value.views:
                kept = None if is_opaque else _moved(equation, axes, _shape(x))
                if name in ("gather", "conv_general_dilated"):
                    self._use(path, LOOKED_UP if name == "gather" else CONVOLUTION)
                elif joined.is_data:
                    self._use(path, OPAQUE if is_opaque else ELEMENTWISE)
                elif kept is not None:
                    views.append((path, kept))
        return [dataclasses.replace(joined, views=tuple(views))] * len(equation.outvars)

    def _product(self, equation: JaxprEqn, left: _Value, right: _Value) -> _Value:
        """Returns the value of a product, whose parameter becomes a matrix. Of two parameters, it is the right one."""
        if ragged := equation.params.get("ragged_dot_dimension_numbers"):
            contracted, (left_batch, right_batch) = ragged.dot_dimension_numbers
            batch = (left_batch, (*right_batch, *ragged.rhs_group_dimensions))
        else:
            contracted, batch = equation.params["dimension_numbers"]
        joined, products = self._joined([left, right]), set()
        for side, value in ((1, right), (0, left)):
            views = [view for view in value.views if not _is_spread(view[1], _shape(equation.invars[side]))]
            if not views:
                continue
            for path, axes in views:
                summed = {i for d in contracted[side] for i in axes[d]}
                free = {i for d, found in enumerate(axes) if d not in (*contracted[side], *batch[side]) for i in found}
                is_matrix = summed and free and not summed & free
                self._use(path, Matrix(tuple(sorted(summed)), tuple(sorted(free))) if is_matrix else VECTOR)
                if is_matrix and (not self._only_first or self._equations.setdefault(path, equation) is equation):
                    products.add(path)
            break
        if products:
            self.hidden |= joined.after - products
        return dataclasses.replace(joined, after=frozenset(products) or joined.after)

    def _use(self, path: str, use: Use) -> None:
        """Records a use. What is also used otherwise than in products is no matrix, such as a tied embedding."""
        before = self.found.get(path)
        if not self._only_first and {type(before), type(use)} == {Matrix, str} and LOOKED_UP in (before, use):
            self.found[path] = TIED
        elif before is None or (not self._only_first and isinstance(before, Matrix) and not isinstance(use, Matrix)):
            self.found[path] = use

    def _joined(self, values: Sequence[_Value]) -> _Value:
        """Returns what was computed from some values, and holds no parameter."""
        after = frozenset().union(*(value.after for value in values)) - self.hidden
        return _Value((), any(value.is_data for value in values), after)

    def _scan(self, equation: JaxprEqn, body: Jaxpr, values: list[_Value]) -> list[_Value]:
        # Arrays that a scan slices or stacks have one dimension less in its body than outside.
        carried = sum(len(_shape(x)) == len(_shape(y)) for x, y in zip(body.outvars, equation.outvars, strict=True))
        whole = sum(len(_shape(x)) == len(_shape(y)) for x, y in zip(body.invars, equation.invars, strict=True))
        slices = []
        for value in values[whole:]:
            views = tuple((path, axes[1:]) for path, axes in value.views)
            slices.append(dataclasses.replace(value, views=views))
        first = whole - carried
        found = self._loop(body, values[:first], values[first:whole], slices)
        return [*found[:carried], *(dataclasses.replace(value, views=()) for value in found[carried:])]

    def _loop(self, body: Jaxpr, consts: list[_Value], carry: list[_Value], more: list[_Value]) -> list[_Value]:
        """Returns the values of the body once those of its carry no longer change. The carry holds no parameter."""
        carry, found = [self._joined([value]) for value in carry], []
        for _ in range(_MAX_ROUNDS):
            found = self.run(body, [*consts, *carry, *more])
            after = [self._joined(pair) for pair in zip(carry, found, strict=False)]
            if after == [self._joined([value]) for value in carry]:
                break
            carry = after
        return [*carry, *found[len(carry) :]]


def _is_spread(axes: Axes, shape: Sequence[int]) -> bool:
    """Returns whether a parameter is repeated along a dimension, as learned queries are for each row of a batch."""
    return any(size > 1 and not found for found, size in zip(axes, shape, strict=True))


def _moved(equation: JaxprEqn, axes: Axes, shape: Sequence[int]) -> Axes | None:
    """Returns the dimensions of a parameter in the result of an equation; None if the result does not hold it."""
    name, params, wanted = equation.primitive.name, equation.params, _shape(equation.outvars[0])
    if name == "transpose":
        return tuple(axes[i] for i in params["permutation"])
    if name == "squeeze":
        return tuple(found for i, found in enumerate(axes) if i not in params["dimensions"])
    if name == "broadcast_in_dim":
        given = {to: i for i, to in enumerate(params["broadcast_dimensions"]) if shape[i] == wanted[to]}
        return tuple(axes[given[i]] if i in given else () for i in range(len(wanted)))
    if name in ("reshape", "expand_dims"):
        return _reshaped(axes, shape, wanted)
    is_kept = len(shape) == len(wanted) if name in _SAME_DIMENSIONS else tuple(shape) == tuple(wanted)
    return axes if is_kept else None


def _reshaped(axes: Axes, shape: Sequence[int], wanted: Sequence[int]) -> Axes | None:
    """Returns the dimensions after a reshape, which splits and merges them; those of size 1 hold nothing."""
    old = [(size, found) for size, found in zip(shape, axes, strict=True) if size != 1]
    new, parts = [size for size in wanted if size != 1], []
    while old and new:
        (left, held), right, count = old.pop(0), new.pop(0), 1
        while left != right:
            if left < right and old:
                size, more = old.pop(0)
                left, held = left * size, tuple(dict.fromkeys((*held, *more)))
            elif right < left and new:
                right, count = right * new.pop(0), count + 1
            else:
                return None
        parts += [held] * count
    left_over = iter(parts)
    return tuple(next(left_over) if size != 1 else () for size in wanted)


def _is_differentiable(x: Var) -> bool:
    """Returns whether a gradient passes an array: not if it holds integers, such as tokens or actions drawn."""
    dtype = getattr(x.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


def _shape(x: Var | Literal) -> tuple[int, ...]:
    return getattr(x.aval, "shape", ())
