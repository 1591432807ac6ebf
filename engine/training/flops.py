"""The FLOPs of a traced program: those of its matrix products and convolutions, by their shapes.

Owns: the count. Does not own: the peak that it is compared with (`config/hardware.py`). A multiply-add is two FLOPs,
as in the tables of peaks. Shapes are global, so the count is that of all devices together; a scan's body counts once
for each turn, which XLA's own count does not do. Element-wise work is left out, as is usual for MFU (Chowdhery et al.
2022, PaLM, appendix B). A while loop of unknown length counts one turn.
"""

import math
from collections.abc import Iterator

from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var


def count_flops(jaxpr: Jaxpr) -> int:
    """Returns the FLOPs of one call of a jaxpr."""
    total = 0
    for equation in jaxpr.eqns:
        name, inputs, outputs = equation.primitive.name, equation.invars, equation.outvars
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * math.prod(_shape(outputs[0])) * math.prod(_shape(inputs[0])[i] for i in contracted)
        elif name == "conv_general_dilated":
            # Each output value sums over the kernel but for its output channels; groups are inside its input channels.
            kernel, dimensions = _shape(inputs[1]), equation.params["dimension_numbers"]
            total += 2 * math.prod(_shape(outputs[0])) * math.prod(kernel) // kernel[dimensions.rhs_spec[0]]
        else:
            turns = equation.params["length"] if name == "scan" else 1
            branches = [count_flops(inner) for inner in inner_jaxprs(equation)]
            total += turns * (max(branches, default=0) if name == "cond" else sum(branches))
    return total


def has_convolution(jaxpr: Jaxpr) -> bool:
    """Whether a jaxpr, or one inside it, holds a convolution."""
    return any(
        equation.primitive.name == "conv_general_dilated" or any(map(has_convolution, inner_jaxprs(equation)))
        for equation in jaxpr.eqns
    )


def inner_jaxprs(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """The jaxprs inside an equation: bodies, branches, called functions."""
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(item, "jaxpr", item)
            if hasattr(inner, "eqns"):
                yield inner


def _shape(variable: Var | Literal) -> tuple[int, ...]:
    return variable.aval.shape  # pyright: ignore[reportAttributeAccessIssue]
