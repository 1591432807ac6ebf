"""Counts the FLOPs of a traced program: those of its matrix products and convolutions, over all devices.

A multiply-add counts as two FLOPs, as in `config/hardware.py`. Element-wise work is left out, as usual for MFU
(Chowdhery et al. 2022, PaLM, appendix B). Unlike in XLA's count, the body of a scan counts once per iteration; a while
loop of unknown length counts as one iteration.
"""

import math
from collections.abc import Iterator

from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var


def count_flops(jaxpr: Jaxpr) -> int:
    """Returns the FLOPs of one call of a jaxpr."""
    total = 0
    for equation in _used(jaxpr):
        name, inputs, outputs = equation.primitive.name, equation.invars, equation.outvars
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * math.prod(_shape(outputs[0])) * math.prod(_shape(inputs[0])[i] for i in contracted)
        elif name == "conv_general_dilated":
            # Each output value sums over all kernel dimensions but the output channels. The input channels of the
            # kernel are those of one group.
            kernel, dimensions = _shape(inputs[1]), equation.params["dimension_numbers"]
            total += 2 * math.prod(_shape(outputs[0])) * math.prod(kernel) // kernel[dimensions.rhs_spec[0]]
        else:
            iterations = equation.params["length"] if name == "scan" else 1
            branches = [count_flops(inner) for inner in inner_jaxprs(equation)]
            total += iterations * (max(branches, default=0) if name == "cond" else sum(branches))
    return total


def _used(jaxpr: Jaxpr) -> list[JaxprEqn]:
    """Returns the equations whose results are used; XLA removes the others."""
    used, needed = [], {variable for variable in jaxpr.outvars if isinstance(variable, Var)}
    for equation in reversed(jaxpr.eqns):
        if equation.effects or not needed.isdisjoint(equation.outvars):
            used.append(equation)
            needed.update(variable for variable in equation.invars if isinstance(variable, Var))
    return used


def has_convolution(jaxpr: Jaxpr) -> bool:
    """Returns whether a jaxpr, or a jaxpr nested in it, has a convolution."""
    return any(
        equation.primitive.name == "conv_general_dilated" or any(map(has_convolution, inner_jaxprs(equation)))
        for equation in jaxpr.eqns
    )


def inner_jaxprs(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """Yields the jaxprs nested in an equation: loop bodies, branches and called functions."""
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(item, "jaxpr", item)
            if hasattr(inner, "eqns"):
                yield inner


def _shape(variable: Var | Literal) -> tuple[int, ...]:
    return variable.aval.shape  # pyright: ignore[reportAttributeAccessIssue]
