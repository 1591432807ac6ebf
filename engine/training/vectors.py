"""Computes a function of many small arrays as if each group of them were one vector, where it is element-wise.

An update of a model of 40 parameters repeats a few operations for each array. Computed on parts of vectors, they become
a kernel that cannot write over its inputs, so that XLA copies the results. On vectors the kernel writes in place.
What is not element-wise is computed of the arrays, so the result is the same in any case.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray, Tracer
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from engine.base.types import PyTree
from engine.training.packing import Packing, flat, part

ELEMENTWISE = frozenset(
    name
    for names in (
        "abs add and cbrt ceil clamp convert_element_type copy div eq erf exp exp2 expm1 floor ge gt integer_pow",
        "is_finite le log log1p logistic lt max min mul ne neg not or pow rem round rsqrt select_n sign sqrt square",
        "sub tanh",
    )
    for name in names.split()
)
"""Names of primitives that compute each element of the result of the same element of each operand."""
CALLS = ("jit", "closed_call", "custom_jvp_call", "custom_vjp_call")


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    """An array that is a part of a vector: `shapes` are those of all parts, in their order."""

    shapes: tuple[tuple[int, ...], ...]
    number: int
    vector: jax.Array

    @functools.cached_property
    def array(self) -> jax.Array:
        return part(self.vector, self.shapes, self.number)


@dataclasses.dataclass(frozen=True, eq=False)
class _Uniform:
    """An array whose elements are one number."""

    number: jax.Array
    shape: tuple[int, ...]

    @functools.cached_property
    def array(self) -> jax.Array:
        return jnp.broadcast_to(self.number, self.shape)


def on_vectors(function: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """Returns `function(*args)`; to be traced.

    Args:
        function: returns a pytree of arrays.
        args: pytrees of arrays that no mesh axis splits. `Packing` says which of them form a vector.
    """
    jaxpr, results = jax.make_jaxpr(function, return_shape=True)(*args)
    leaves: list[Any] = jax.tree.leaves(args)
    for numbers in Packing.of(args).vectors:
        shapes = tuple(leaves[n].shape for n in numbers)
        vector = jnp.concatenate([flat(leaves[n]) for n in numbers])
        for place, n in enumerate(numbers):
            leaves[n] = _Part(shapes, place, vector)
    found = _Evaluation().run(jaxpr.jaxpr, jaxpr.consts, leaves)
    for numbers in Packing.of(results).vectors:
        _join(found, numbers)
    return jax.tree.unflatten(jax.tree.structure(results), map(_array, found))


def _join(found: list[Any], numbers: Sequence[int]) -> None:
    """Makes the results with these numbers parts of one vector, if they are the parts of several.

    So a weight decay that some arrays have costs both variants of each element, and no copy of the vector.
    """
    parts = [found[n] for n in numbers]
    if any(not isinstance(x, _Part) or x.number != place for place, x in enumerate(parts)):
        return
    shapes, sizes = parts[0].shapes, [math.prod(shape) for shape in parts[0].shapes]
    if len(shapes) != len(parts) or any(x.shapes != shapes for x in parts):
        return
    vectors = list({id(x.vector): x.vector for x in parts}.values())
    whole = vectors[0]
    for vector in vectors[1:]:
        whole = jnp.where(np.repeat([x.vector is vector for x in parts], sizes), vector, whole)
    for place, n in enumerate(numbers):
        found[n] = _Part(shapes, place, whole)


def _array(x: Any) -> Any:
    return x.array if isinstance(x, _Part | _Uniform) else x


class _Evaluation:
    """Evaluates a function, and computes an operation on the vector of several arrays once."""

    def __init__(self) -> None:
        self._known: dict[Any, jax.Array] = {}
        self._kept: list[Any] = []  # so that no `id` in a key of `_known` is used again

    def run(self, jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

        def read(x: Any) -> Any:
            if not isinstance(x, Literal):
                return values[x]
            assert isinstance(x.aval, ShapedArray)
            return np.asarray(x.val, x.aval.dtype)

        for eqn in jaxpr.eqns:
            values |= zip(eqn.outvars, self._results(eqn, [read(x) for x in eqn.invars]), strict=True)
        return [read(x) for x in jaxpr.outvars]

    def _results(self, eqn: JaxprEqn, operands: list[Any]) -> Sequence[Any]:
        name, params = eqn.primitive.name, eqn.params
        inner = params.get("jaxpr", params.get("call_jaxpr")) if name in CALLS else None
        if inner is not None:
            return self.run(inner.jaxpr, inner.consts, operands)
        parts = [x for x in operands if isinstance(x, _Part)]
        if name == "sharding_constraint" and parts:
            return operands  # the devices have all arrays whole
        if name == "broadcast_in_dim" and len(operands) == 1 and not jnp.ndim(_array(operands[0])):
            return [_Uniform(_array(operands[0]), params["shape"])]
        if name in ELEMENTWISE and self._is_one_place(operands, parts):
            return [self._once(eqn, operands, parts)]
        bound = eqn.primitive.get_bind_params(params)  # a `jax.shard_map` is called with its function
        results = eqn.primitive.bind(*map(_array, operands), **bound)
        return results if eqn.primitive.multiple_results else [results]

    def _is_one_place(self, operands: Sequence[Any], parts: Sequence[_Part]) -> bool:
        """Returns whether all operands are the same part of vectors, or numbers."""
        places = {(x.shapes, x.number) for x in parts}
        others = [x for x in operands if not isinstance(x, _Part | _Uniform)]
        uniform = any(isinstance(x, _Uniform) for x in operands)
        return not any(map(jnp.ndim, others)) and (len(places) == 1 or (not places and not uniform))

    def _once(self, eqn: JaxprEqn, operands: Sequence[Any], parts: Sequence[_Part]) -> Any:
        """Returns the result of vectors, or of numbers, which is computed for the first array alone."""
        values = [x.vector if isinstance(x, _Part) else x.number if isinstance(x, _Uniform) else x for x in operands]
        keys = (id(x) if isinstance(x, Tracer | jax.Array) else (str(jnp.result_type(x)), repr(x)) for x in values)
        key = (eqn.primitive, tuple(keys), str(sorted(eqn.params.items())), parts[0].shapes if parts else ())
        if key not in self._known:
            self._kept += values
            if parts:
                first = 1 if eqn.primitive.name == "select_n" else 0  # its first operand may be a number
                size = parts[0].vector.shape
                values = [*values[:first], *(jnp.broadcast_to(x, size) for x in values[first:])]
            self._known[key] = eqn.primitive.bind(*values, **eqn.params)
        found = self._known[key]
        return dataclasses.replace(parts[0], vector=found) if parts else found
