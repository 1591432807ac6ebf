"""Walks and rewrites traced programs (jaxprs)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn, Var, jaxpr_as_fun


def keep_all[**P, R](function: Callable[P, R]) -> Callable[P, R]:
    """Wraps a traced function of positional arguments so that its gradient recomputes nothing.

    Each `jax.checkpoint` inside, also those that the model's author wrote, keeps all values.
    """

    def call(*args: P.args, **_: P.kwargs) -> R:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        found = jaxpr_as_fun(_keep_all_in(closed))(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), found)

    return call


def _keep_all_in(value: Any) -> Any:
    """Returns a jaxpr, or any parameter of an equation, in which each `jax.checkpoint` keeps all values."""
    if type(value) in (tuple, list):
        return type(value)(map(_keep_all_in, value))
    if not hasattr(value, "eqns"):
        return value
    equations = []
    for equation in value.eqns:
        params = equation.params
        if any(True for _ in inner_jaxprs(equation)):
            params = {name: _keep_all_in(param) for name, param in params.items()}
            if "policy" in params:
                params["policy"] = jax.checkpoint_policies.everything_saveable
        equations.append(equation.replace(params=params))
    return value.replace(eqns=equations)


def inner_jaxprs(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """Yields the jaxprs nested in an equation: loop bodies, branches and called functions."""
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(item, "jaxpr", item)
            if hasattr(inner, "eqns"):
                yield inner


def run_equation(closed: Any, equation: JaxprEqn, args: Sequence[Any]) -> Sequence[Any]:
    """Returns the results of an equation of a jaxpr for these values of its operands.

    An equation that calls functions runs as a jaxpr of its own, so that these keep their derivatives.
    """
    if not any(True for _ in inner_jaxprs(equation)):
        found = equation.primitive.bind(*args, **equation.params)
        return found if equation.primitive.multiple_results else [found]
    variables = [(x, arg) for x, arg in zip(equation.invars, args, strict=True) if isinstance(x, Var)]
    single = closed.replace(invars=[x for x, _ in variables], outvars=equation.outvars, eqns=[equation])
    return jaxpr_as_fun(single)(*[arg for _, arg in variables])
