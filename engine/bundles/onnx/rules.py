"""A rule for jax2onnx: the product of rows with a matrix as one MatMul, which runtimes compute fastest and in integers.

jax2onnx itself writes an Einsum if the rows have several dimensions.
"""

import importlib
from typing import Any


def register() -> None:
    """Replaces the rule of jax2onnx for `dot_general` by one that falls back on it."""
    ir: Any = importlib.import_module("onnx_ir")
    system: Any = importlib.import_module("jax2onnx.plugins.plugin_system")
    system.import_all_plugins()
    before = system.PLUGIN_REGISTRY["dot_general"]
    if type(before).__name__ == "Products":
        return

    @system.register_primitive(jaxpr_primitive="dot_general", context="convoy", component="products", testcases=[])
    class Products(type(before)):
        def lower(self, ctx: Any, eqn: Any) -> None:
            if not is_of_rows(eqn):
                return before.lower(ctx, eqn)
            x, matrix = (ctx.get_value_for_var(variable) for variable in eqn.invars)
            [out] = eqn.outvars
            result = ctx.builder.MatMul(x, matrix, _outputs=[ctx.fresh_name("product")])
            result.type, result.shape = x.type, ir.Shape([_size(n) for n in out.aval.shape])
            ctx.bind_value_for_var(out, result)


def _size(size: Any) -> int | str:
    return size if isinstance(size, int) else str(size)


def is_of_rows(equation: Any) -> bool:
    """Returns whether a product is one of the last dimension of three or more with the first one of a matrix."""
    (contracted, batch), (x, matrix) = equation.params["dimension_numbers"], [v.aval for v in equation.invars]
    [left, right] = map(list, contracted)
    if any(map(len, batch)) or len(x.shape) < 3 or len(matrix.shape) != 2:
        return False
    return left == [len(x.shape) - 1] and right == [0] and x.dtype == matrix.dtype == equation.outvars[0].aval.dtype
