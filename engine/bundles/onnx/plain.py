"""Functions in few plain operations, for converters that have rules for these only.

A traced function is evaluated again: calls are inlined, hints to XLA are left out, small constants are computed, and
gathers and scatters become those of rows.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from engine.bundles.onnx import rows
from engine.training.jaxprs import inner_jaxprs

FOLDED = 4096
"""Elements of the largest constant that is computed beforehand, unless it is smaller than what it is made of."""
WINDOW = 16
"""Elements of the longest window along a dimension that is computed from shifted arrays."""
_WINDOWS = {"reduce_window_max": (jnp.maximum, False), "reduce_window_sum": (jnp.add, True)}
_HINTS = ("layout_constraint", "optimization_barrier", "sharding_constraint", "name", "copy")
_CALLS = ("jit", "pjit", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint", "closed_call", "core_call")


class Plain:
    """A function of arrays, traced with these shapes, that computes the same in plain operations when it is called.

    Args:
        function: a function of arrays, which returns a list of arrays.
        specs: shapes and dtypes of its arguments; sizes may be symbolic.
    """

    def __init__(self, function: Callable[..., list[jax.Array]], *specs: jax.ShapeDtypeStruct):
        self._closed, self._outputs = jax.make_jaxpr(function, return_shape=True)(*specs)

    def __call__(self, *args: Any) -> list[Any]:
        return _run(self._closed, args)

    @property
    def outputs(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the results."""
        return [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in self._outputs]

    def equations(self) -> Iterator[JaxprEqn]:
        """Yields the equations of the function as it was written, with those inside of others."""
        return _equations(self._closed.jaxpr)


def _equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in inner_jaxprs(equation):
            yield from _equations(inner)


def _run(closed: Any, args: Sequence[Any]) -> list[Any]:
    """Returns the results of a closed jaxpr."""
    jaxpr = closed.jaxpr
    known = dict(zip(jaxpr.constvars, closed.consts, strict=True)) | dict(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else known[atom]

    for equation in jaxpr.eqns:
        results = _apply(equation, [read(x) for x in equation.invars])
        known.update(zip(equation.outvars, results, strict=True))
    return [read(x) for x in jaxpr.outvars]


def _apply(equation: JaxprEqn, args: list[Any]) -> Sequence[Any]:
    """Returns the results of an equation."""
    name, params = equation.primitive.name, equation.params
    if name in _HINTS:
        return args
    if name in _CALLS:
        return _run(next(x for x in params.values() if hasattr(x, "jaxpr")), args)
    if name in _LOOPS:
        return _LOOPS[name](equation, args)
    if (found := _rewritten(equation, args)) is not None:
        return [found]
    with jax.ensure_compile_time_eval() if _is_constant(equation, args) else contextlib.nullcontext():
        results = equation.primitive.bind(*args, **params)
    return results if equation.primitive.multiple_results else [results]


def _rewritten(equation: JaxprEqn, args: list[Any]) -> Any:
    """Returns the result of an equation in other operations; None if it needs none."""
    name, params = equation.primitive.name, equation.params
    if name == "platform_index":  # of jax.lax.platform_dependent
        return next(i for i, names in enumerate(params["platforms"]) if names is None or "cpu" in names)
    if (scatter := name.replace("_", "-")) in rows.SCATTERS and rows.scatters_rows(equation):
        return rows.scatter(scatter, params, *args)
    if name == "gather" and np.ndim(args[1]) == 1 and not isinstance(args[1], Tracer):
        return rows.slice_at(params, *args)
    if name == "gather" and rows.gathers_rows(equation):
        return rows.gather(params, *args)
    if name in _WINDOWS and _is_small(params):
        return _reduce_window(*_WINDOWS[name], params, *args)
    if name in ("le_to", "lt_to"):  # of searchsorted
        return _precedes(args[0], args[1], name == "le_to")
    if name == "rem" and jnp.issubdtype(jnp.result_type(*args), jnp.integer):
        return args[0] - lax.div(*args) * args[1]
    if name == "select_n" and len(args) == 3:
        return _choice(*args)
    return None


def _precedes(x: Any, y: Any, or_equal: bool) -> jax.Array:
    """Returns whether x comes before y; NaN is after all numbers."""
    found = lax.le(x, y) if or_equal else lax.lt(x, y)
    if not jnp.issubdtype(jnp.result_type(x), jnp.inexact):
        return found
    return found | (jnp.isnan(y) if or_equal else jnp.isnan(y) & ~jnp.isnan(x))


def _choice(which: Any, no: Any, yes: Any) -> jax.Array:
    if jnp.result_type(no) == jnp.bool_:  # ONNX Runtime has no Where of bools
        return (which & yes) | (~which & no)
    return lax.select_n(which, no, yes)


def _is_constant(equation: JaxprEqn, args: Sequence[Any]) -> bool:
    """Returns whether the results of an equation are constants that need no more memory than its arguments."""
    if any(isinstance(x, Tracer) for x in args) or any(True for _ in inner_jaxprs(equation)):
        return False
    shapes = [rows.shape_of(x) for x in equation.outvars]
    if not all(isinstance(size, int) for shape in shapes for size in shape):
        return False
    return sum(map(math.prod, shapes)) <= max(FOLDED, *(np.size(x) for x in args), 0)


def _is_small(params: Any) -> bool:
    """Returns whether a window moves over an array without gaps and has few elements along each dimension."""
    gaps = (*params["base_dilation"], *params["window_dilation"])
    return all(gap == 1 for gap in gaps) and max(params["window_dimensions"]) <= WINDOW


def _reduce_window(merge: Callable[..., jax.Array], is_sum: bool, params: Any, x: jax.Array) -> jax.Array:
    """Returns the reduction of windows, one dimension after another, from shifted arrays.

    ONNX has pooling for channels first and at most three dimensions only.
    """
    windows = zip(params["window_dimensions"], params["window_strides"], params["padding"], strict=True)
    for dimension, (size, stride, (before, after)) in enumerate(windows):
        if size == stride == 1 and not before and not after:
            continue
        low = 0 if is_sum else -jnp.inf if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.iinfo(x.dtype).min
        x = jnp.pad(x, [(before, after) if i == dimension else (0, 0) for i in range(x.ndim)], constant_values=low)
        last = x.shape[dimension] - size + 1
        x = functools.reduce(merge, (lax.slice_in_dim(x, k, last + k, stride, dimension) for k in range(size)))
    return x


def _cond(equation: JaxprEqn, args: list[Any]) -> Sequence[Any]:
    branches = [functools.partial(_branch, branch) for branch in equation.params["branches"]]
    return branches[args[0]](*args[1:]) if isinstance(args[0], int) else lax.switch(args[0], branches, *args[1:])


def _branch(branch: Any, *args: Any) -> list[Any]:
    return _run(branch, args)


def _scan(equation: JaxprEqn, args: list[Any]) -> list[Any]:
    params, body = equation.params, equation.params["jaxpr"]
    # What a scan slices or stacks has one dimension less in its body than outside.
    whole = _same_ranks(body.jaxpr.invars, equation.invars)
    carried, length = _same_ranks(body.jaxpr.outvars, equation.outvars), params["length"]
    fixed, carry, rest = args[: whole - carried], args[whole - carried : whole], args[whole:]

    def step(carry: Any, xs: Any) -> tuple[list[Any], list[Any]]:
        results = _run(body, [*fixed, *carry, *xs])
        return results[:carried], results[carried:]

    if params["unroll"] < length:
        carry, stacked = lax.scan(step, carry, rest, length=length, reverse=params["reverse"])
        return [*carry, *stacked]
    found = []
    for i in reversed(range(length)) if params["reverse"] else range(length):
        carry, ys = step(carry, [_at(x, i) for x in rest])
        found.append(ys)
    found = found[::-1] if params["reverse"] else found
    return [*carry, *(jnp.stack(ys) for ys in zip(*found, strict=True))]


def _at(x: Any, i: int) -> Any:
    """Returns the element of an array for an iteration; that of a constant, such as stacked weights, is a constant."""
    return lax.index_in_dim(x, i, 0, keepdims=False) if isinstance(x, Tracer) else np.asarray(x)[i]


def _same_ranks(inside: Sequence[Any], outside: Sequence[Any]) -> int:
    return sum(len(rows.shape_of(x)) == len(rows.shape_of(y)) for x, y in zip(inside, outside, strict=True))


def _while(equation: JaxprEqn, args: list[Any]) -> list[Any]:
    params = equation.params
    tests, bodies = params["cond_nconsts"], params["body_nconsts"]
    of_test, of_body, start = args[:tests], args[tests : tests + bodies], args[tests + bodies :]

    def goes_on(carry: list[Any]) -> jax.Array:
        return _run(params["cond_jaxpr"], [*of_test, *carry])[0]

    def step(carry: list[Any]) -> list[Any]:
        after, which = _run(params["body_jaxpr"], [*of_body, *carry]), goes_on(carry)
        if not which.ndim:
            return after
        # A loop of `jax.vmap` ends for some rows before others, which then keep their values.
        return [
            _choice(lax.broadcast_in_dim(which, x.shape, tuple(range(which.ndim))), old, x)
            for x, old in zip(after, carry, strict=True)
        ]

    return lax.while_loop(lambda carry: goes_on(carry).any(), step, [jnp.asarray(x) for x in start])


def _expanded(equation: JaxprEqn, args: list[Any]) -> list[Any]:
    """Returns the results of an operation that consists of others (jax.experimental.hijax)."""
    operation = next(x for x in equation.params.values() if hasattr(x, "expand"))
    return _run(jax.make_jaxpr(lambda *args: jax.tree.leaves(operation.expand(*args)))(*args), args)


_LOOPS: dict[str, Callable[[JaxprEqn, list[Any]], Sequence[Any]]] = {
    "call_hi_primitive": _expanded,
    "cond": _cond,
    "scan": _scan,
    "while": _while,
}
