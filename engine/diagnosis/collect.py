"""Returns values from the inside of a traced function: those that it has marked, and the dead units of its activations.

It runs the function from its jaxpr, so that marked values also leave the loops (`jax.lax.scan`) and the parts to
recompute (`jax.checkpoint`) in which they are computed. Values within a `jax.shard_map`, such as the stages of a
pipeline, a `jax.lax.cond`, a while loop or a kernel stay inside.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from engine.base.types import PyTree
from engine.training.jaxprs import inner_jaxprs, run_equation

PREFIX = "convoy diagnosis "
DEAD = "dead"
"""Measure of the units of an activation: bool `[units]`, whether a unit is 0 in the whole batch."""
ENTROPY = "entropy"
"""Measure of attention: the entropy of its weights in nats, a mean over the queries."""
ENTER, BEGIN_ATTENTION, END_ATTENTION = "", "(", ")"
"""What a mark says in place of a measure. A softmax between the last two has the weights of an attention."""
_CALLS = ("jit", "pjit", "custom_jvp_call", "custom_vjp_call", "remat", "remat2", "checkpoint", "closed_call")

type Key = tuple[str, str]
"""A layer and a measure."""
type Found = dict[Key, list[jax.Array]]
"""Values in the order of the program. Those of a loop have a leading dimension for its iterations."""


def mark(layer: str, measure: str, value: jax.Array) -> None:
    """Marks a value of a layer, while a function is traced for `collect`."""
    checkpoint_name(value, PREFIX + json.dumps([layer, measure]))


def enter(layer: str) -> None:
    """Marks that the operations from here on belong to a layer."""
    mark(layer, ENTER, jnp.zeros(()))


def begin_attention(layer: str) -> None:
    """Marks that the next softmax is that of an attention."""
    mark(layer, BEGIN_ATTENTION, jnp.zeros(()))


def end_attention() -> None:
    """Marks that a softmax is no longer that of an attention."""
    mark("", END_ATTENTION, jnp.zeros(()))


def collect(function: Callable[..., Any], *args: PyTree) -> Found:
    """Returns the marked values, DEAD of each `max(x, 0)` whose last dimension has the units, and ENTROPY.

    An operation belongs to the layer that was entered last, also after this layer has returned.
    """
    closed = jax.make_jaxpr(function)(*args)
    found = _Collector()
    found.run(closed, jax.tree.leaves(args))
    return found.values


class _Collector:
    """Runs a jaxpr.

    Args:
        layer: the layer that was entered last.
        attention: the layer of which a softmax has the weights of an attention; "" for none.
    """

    def __init__(self, layer: str = "", attention: str = ""):
        self.layer, self.attention = layer, attention
        self.values: Found = {}

    def add(self, key: Key, values: Sequence[jax.Array]) -> None:
        self.values.setdefault(key, []).extend(values)

    def run(self, closed: Any, args: Sequence[Any]) -> list[Any]:
        """Returns the results of a closed jaxpr."""
        jaxpr: Jaxpr = closed.jaxpr
        known = dict(zip(jaxpr.constvars, closed.consts, strict=True)) | dict(zip(jaxpr.invars, args, strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else known[atom]

        made_by = {x: equation for equation in jaxpr.eqns for x in equation.outvars}
        for equation in jaxpr.eqns:
            results = self._apply(closed, equation, [read(x) for x in equation.invars])
            if self.attention and _is_softmax(equation, made_by):
                self.add((self.attention, ENTROPY), [_entropy(results[0])])
            known.update(zip(equation.outvars, results, strict=True))
        return [read(x) for x in jaxpr.outvars]

    def _apply(self, closed: Any, equation: JaxprEqn, args: list[Any]) -> Sequence[Any]:
        """Returns the results of an equation of a jaxpr."""
        if (key := _marked(equation)) is not None:
            layer, measure = key
            if measure == ENTER:
                self.layer = layer
            elif measure in (BEGIN_ATTENTION, END_ATTENTION):
                self.attention = layer if measure == BEGIN_ATTENTION else ""
            else:
                self.add(key, args)
            return args
        inner = [value for value in equation.params.values() if hasattr(value, "jaxpr") or hasattr(value, "eqns")]
        if len(inner) == 1 and _has_values(equation):
            if equation.primitive.name in _CALLS:
                return self.run(inner[0], args)
            if equation.primitive.name == "scan":
                return self._scan(equation, inner[0], args)
        results = run_equation(closed, equation, args)
        if self.layer and _is_activation(equation):
            self.add((self.layer, DEAD), [(results[0] == 0).all(tuple(range(results[0].ndim - 1)))])
        return results

    def _scan(self, equation: JaxprEqn, body: Any, args: list[Any]) -> list[Any]:
        # What a scan slices or stacks has one dimension less in its body than outside.
        whole = _same_ranks(body.jaxpr.invars, equation.invars)
        carried = _same_ranks(body.jaxpr.outvars, equation.outvars)
        constants, carry, sliced = args[: whole - carried], args[whole - carried : whole], args[whole:]
        keys: list[tuple[Key, int]] = []
        layer, attention = self.layer, self.attention

        def step(carry: list[Any], xs: list[Any]) -> tuple[list[Any], tuple[list[Any], list[Any]]]:
            inner = _Collector(layer, attention)
            results = inner.run(body, [*constants, *carry, *xs])
            keys[:] = [(key, len(values)) for key, values in inner.values.items()]
            self.layer = inner.layer
            return results[:carried], (results[carried:], [x for values in inner.values.values() for x in values])

        options = {name: equation.params[name] for name in ("length", "reverse", "unroll")}
        carry, (stacked, values) = jax.lax.scan(step, carry, sliced, **options)
        for key, count in keys:
            self.add(key, values[:count])
            values = values[count:]
        return [*carry, *stacked]


def _marked(equation: JaxprEqn) -> Key | None:
    name = equation.params.get("name")
    if equation.primitive.name != "name" or not str(name).startswith(PREFIX):
        return None
    layer, measure = json.loads(str(name).removeprefix(PREFIX))
    return layer, measure


def _is_activation(equation: JaxprEqn) -> bool:
    """Returns whether an equation is `max(x, 0)` of floating-point numbers with a dimension before the units."""
    return (
        equation.primitive.name == "max"
        and _rank(equation.outvars[0]) > 1
        and jnp.issubdtype(_aval(equation.outvars[0]).dtype, jnp.floating)
        and any(isinstance(x, Literal) and x.val == 0 for x in equation.invars)
    )


def _entropy(weights: jax.Array) -> jax.Array:
    return -jax.scipy.special.xlogy(weights, weights).sum(-1).mean(dtype=jnp.float32)


def _is_softmax(equation: JaxprEqn, made_by: Mapping[Any, JaxprEqn]) -> bool:
    """Returns whether an equation is the last one of a softmax over the last dimension of three or more."""
    if equation.primitive.name != "div" or _rank(equation.outvars[0]) < 3:
        return False
    exp, total = (made_by.get(x) if isinstance(x, Var) else None for x in equation.invars)
    while total is not None and total.primitive.name in ("broadcast_in_dim", "reshape", "convert_element_type"):
        total = made_by.get(total.invars[0])
    if exp is None or total is None or (exp.primitive.name, total.primitive.name) != ("exp", "reduce_sum"):
        return False
    return total.invars[0] is exp.outvars[0] and total.params["axes"] == (_rank(exp.outvars[0]) - 1,)


def _has_values(equation: JaxprEqn) -> bool:
    """Returns whether a value that `collect` returns may be computed within an equation."""
    return any(
        _marked(inner) is not None or _is_activation(inner) or inner.primitive.name == "exp" or _has_values(inner)
        for jaxpr in inner_jaxprs(equation)
        for inner in jaxpr.eqns
    )


def _same_ranks(inside: Sequence[Any], outside: Sequence[Any]) -> int:
    return sum(_rank(x) == _rank(y) for x, y in zip(inside, outside, strict=True))


def _aval(atom: Any) -> Any:
    return atom.aval


def _rank(atom: Any) -> int:
    return len(getattr(_aval(atom), "shape", ()))
