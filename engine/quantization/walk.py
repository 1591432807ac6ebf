"""Runs a traced function with other products: `Walk` follows each weight to the products that it is an operand of.

It follows weights into called functions, loops (`jax.lax.scan`), parts to recompute (`jax.checkpoint`) and functions
with own derivatives. Products within a `jax.lax.cond`, a while loop, a `jax.shard_map` or a kernel stay as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import jax
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from engine.quantization.products import PRODUCTS, Product
from engine.quantization.views import Followed, rearranged
from engine.training.jaxprs import inner_jaxprs, run_equation

FAKE = "convoy_fake_quantized"
"""Name of the function that rounds an array while a model is trained for fewer bits. Here it is left out."""
_CALLS = ("jit", "pjit", "custom_jvp_call", "custom_vjp_call", "closed_call", "core_call")
_REMAT = ("remat", "remat2", "checkpoint")


class Walk:
    """Runs a function, and calls `product` for each of its products with a weight.

    Attributes:
        values: what `product` has recorded: name of the weight -> array, in loops over the weight `[loop, ...]`.
    """

    keeps_remat = False
    """Whether parts to recompute in a backward pass stay so."""
    rank = 0
    """Number of dimensions of a recorded value."""

    def __init__(self):
        self.values: dict[str, jax.Array] = {}

    def product(self, product: Product, x: jax.Array, weight: Followed) -> jax.Array:
        """Returns the result of a product in the dtype of the equation. A subclass defines it."""
        raise NotImplementedError

    def unreached(self, equation: JaxprEqn, names: Sequence[str]) -> None:
        """Called for an equation that has products inside, perhaps with these weights, which stay as they are."""

    def combine(self, values: jax.Array, other: jax.Array) -> jax.Array:
        """Returns one value for two values that were recorded for a weight."""
        raise NotImplementedError

    def reduce(self, values: jax.Array) -> jax.Array:
        """Returns one value for those of the iterations of a loop, `[loop, ...]`."""
        raise NotImplementedError

    def child(self) -> Self:
        """Returns a walk for the body of a loop."""
        return type(self)()

    def record(self, name: str, value: jax.Array) -> None:
        """Records a value of a weight."""
        if (known := self.values.get(name)) is not None:
            while known.ndim > value.ndim:
                known = self.reduce(known)
            while value.ndim > known.ndim:
                value = self.reduce(value)
            value = self.combine(known, value)
        self.values[name] = value

    def run(self, closed: Any, args: Sequence[Any]) -> list[Any]:
        """Returns the results of a jaxpr as arrays.

        Args:
            closed: the jaxpr.
            args: arrays, and weights as `Followed`.
        """
        jaxpr, consts = getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())
        known = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, args, strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else known[atom]

        for equation in jaxpr.eqns:
            results = self._apply(closed, equation, [read(x) for x in equation.invars])
            known.update(zip(equation.outvars, results, strict=True))
        return [_plain(read(x), x) for x in jaxpr.outvars]

    def _apply(self, closed: Any, equation: JaxprEqn, operands: list[Any]) -> Sequence[Any]:
        name = equation.primitive.name
        if equation.params.get("name") == FAKE:
            return operands[:1]
        if any(isinstance(x, Followed) for x in operands):
            if (product := Product.of(equation, operands)) is not None:
                x, weight = operands[1 - product.side], operands[product.side]
                return [self.product(product, x, weight)]
            if name == "optimization_barrier":
                return operands
            first, *others = operands
            found = None
            if isinstance(first, Followed) and not any(isinstance(x, Followed) for x in others):
                found = rearranged(equation, first, others)
            if found is not None:
                return found
            inner = [value for value in equation.params.values() if hasattr(value, "jaxpr") or hasattr(value, "eqns")]
            if len(inner) == 1:
                if name in _CALLS or (name in _REMAT and not self.keeps_remat):
                    return self.run(inner[0], operands)
                if name in _REMAT:
                    return self._recomputed(equation, inner[0], operands)
                if name == "scan":
                    return self._scan(equation, inner[0], operands)
            if any(map(_has_products, inner_jaxprs(equation))):
                self.unreached(equation, [x.name for x in operands if isinstance(x, Followed)])
        plain = [_plain(x, atom) for x, atom in zip(operands, equation.invars, strict=True)]
        return run_equation(closed, equation, plain)

    def _recomputed(self, equation: JaxprEqn, inner: Any, operands: list[Any]) -> list[Any]:
        def call(arrays: list[Any]) -> list[Any]:
            given = iter(arrays)
            return self.run(inner, [x if isinstance(x, Followed) else next(given) for x in operands])

        options = {name: equation.params[name] for name in ("prevent_cse", "policy")}
        return jax.checkpoint(call, **options)([x for x in operands if not isinstance(x, Followed)])

    def _scan(self, equation: JaxprEqn, body: Any, operands: list[Any]) -> list[Any]:
        # What a scan slices or stacks has one dimension less in its body than outside.
        whole = _same_ranks(body.jaxpr.invars, equation.invars)
        carried = _same_ranks(body.jaxpr.outvars, equation.outvars)
        constants, rest = operands[: whole - carried], operands[whole:]
        carry = [
            _plain(x, atom)
            for x, atom in zip(operands[whole - carried : whole], equation.invars[whole - carried :], strict=False)
        ]
        sliced = {x.name for x in rest if isinstance(x, Followed)}
        walk = self.child()

        def step(carry: list[Any], parts: list[Any]) -> tuple[list[Any], tuple[list[Any], Mapping[str, jax.Array]]]:
            xs = [x.iteration(part) if isinstance(x, Followed) else part for x, part in zip(rest, parts, strict=True)]
            walk.values = {}
            results = walk.run(body, [*constants, *carry, *xs])
            return results[:carried], (results[carried:], walk.values)

        arrays = [x.loop_arrays() if isinstance(x, Followed) else x for x in rest]
        options = {name: equation.params[name] for name in ("length", "reverse", "unroll")}
        carry, (stacked, values) = jax.lax.scan(step, carry, arrays, **options)
        for name, value in values.items():
            self.record(name, value if name in sliced else self.reduce(value))
        return [*carry, *stacked]


def run(
    walk: Walk, function: Callable[..., Any], weights: Mapping[str, Any], followed: Mapping[str, Any], *args: Any
) -> Any:
    """Returns the result of `function(weights, *args)`, computed by a walk.

    Args:
        walk: runs it.
        function: the function.
        weights: name -> weight as the function expects it, or its shape and dtype.
        followed: name -> the weight, as an array or `Followed`.
        *args: other arguments.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(dict(weights), *args)
    found = walk.run(closed, [*(followed[name] for name in sorted(weights)), *jax.tree.leaves(args)])
    return jax.tree.unflatten(jax.tree.structure(shape), found)


def _has_products(jaxpr: Jaxpr) -> bool:
    return any(
        equation.primitive.name in PRODUCTS or any(map(_has_products, inner_jaxprs(equation)))
        for equation in jaxpr.eqns
    )


def _plain(value: Any, atom: Any) -> Any:
    return value.floats(atom.aval.dtype) if isinstance(value, Followed) else value


def _same_ranks(inside: Sequence[Any], outside: Sequence[Any]) -> int:
    return sum(len(x.aval.shape) == len(y.aval.shape) for x, y in zip(inside, outside, strict=True))
