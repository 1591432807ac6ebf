"""Counts the FLOPs of a traced program: those of its matrix products and convolutions, over all devices.

A multiply-add counts as two FLOPs, as in `config/hardware.py`. Element-wise work is left out, as usual for MFU
(Chowdhery et al. 2022, PaLM, appendix B). Unlike in XLA's count, the body of a scan counts once per iteration, that of
a `jax.shard_map` once per device, and a kernel counts. A while loop of unknown length counts as one iteration.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from engine.base.types import PyTree
from engine.data.batch import Batch
from engine.parallel.layout import with_layout
from engine.parallel.mesh import one_device
from engine.training.arrays import abstract_key
from engine.training.gradients import gradients
from engine.training.jaxprs import inner_jaxprs
from engine.training.state import TrainState
from engine.training.step_spec import StepSpec
from engine.training.update import has_own_update, own_update

CAUSAL = "convoy_causal_attention"
"""Name of the function of `layers/reference.py` of whose products half counts."""
CUDNN = {"dot_product_attention_fwd_wrapper": 2, "dot_product_attention_bwd_wrapper": 5}
"""Primitive of cuDNN's attention -> number of its products; the gradient computes the scores again."""


def count_flops(jaxpr: Jaxpr) -> int:
    """Returns the FLOPs of one call of a jaxpr. Equations whose results are not used do not count: XLA removes them."""
    return _walk(jaxpr, [True] * len(jaxpr.outvars))[0]


def equation_flops(equation: JaxprEqn) -> int:
    """Returns the FLOPs of one equation, and of what is nested in it."""
    return _equation(equation, [True] * len(equation.outvars))[0]


def _walk(jaxpr: Jaxpr, needed: Sequence[bool]) -> tuple[int, list[bool]]:
    """Returns the FLOPs, and for each input whether it is used, if only some of the results are needed."""
    total, used = 0, {x for x, is_needed in zip(jaxpr.outvars, needed, strict=True) if is_needed and isinstance(x, Var)}
    for equation in reversed(jaxpr.eqns):
        wanted = [x in used for x in equation.outvars]
        if any(wanted) or equation.effects:
            flops, inputs = _equation(equation, wanted)
            total += flops
            used.update(x for x, is_used in zip(equation.invars, inputs, strict=True) if is_used and isinstance(x, Var))
    return total, [x in used for x in jaxpr.invars]


def _equation(equation: JaxprEqn, wanted: list[bool]) -> tuple[int, list[bool]]:
    """Returns as `_walk` for one equation."""
    name, params, everything = equation.primitive.name, equation.params, [True] * len(equation.invars)
    if name in _PRODUCTS:
        return _PRODUCTS[name](equation), everything
    if name in CUDNN:
        (batch, time, heads, head_dim), keys = _shape(equation.invars[0]), _shape(equation.invars[1])[1]
        return CUDNN[name] * 2 * batch * heads * time * keys * head_dim, everything
    inner = list(inner_jaxprs(equation))
    if name == "scan":
        flops, inputs = _scan(equation, inner[0], wanted)
        return params["length"] * flops, inputs
    if name == "cond":
        branches = [_walk(branch, wanted) for branch in inner]
        inputs = [any(used) for used in zip(*(used for _, used in branches), strict=True)]
        return max(flops for flops, _ in branches), [True, *inputs]
    if name == "pallas_call" or len(inner) != 1 or not _is_call(equation, inner[0]):
        grid = params["grid_mapping"].grid if name == "pallas_call" else ()
        sizes = math.prod(size for size in grid if isinstance(size, int))
        return sizes * sum(map(count_flops, inner)), everything
    flops, inputs = _walk(inner[0], wanted)
    if name == "shard_map":
        flops *= math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return flops // 2 if params.get("name") == CAUSAL else flops, inputs


def _is_call(equation: JaxprEqn, inner: Jaxpr) -> bool:
    """Returns whether inputs and results of an equation are those of its inner jaxpr, as for a called function."""
    return len(inner.invars) == len(equation.invars) and len(inner.outvars) == len(equation.outvars)


def _scan(equation: JaxprEqn, body: Jaxpr, wanted: list[bool]) -> tuple[int, list[bool]]:
    """Returns as `_walk` for one iteration of a scan, whose carry is also needed if a later iteration uses it."""
    # Arrays that a scan slices or stacks have one dimension less in its body than outside.
    carried = sum(len(_shape(x)) == len(_shape(y)) for x, y in zip(body.outvars, equation.outvars, strict=True))
    whole = sum(len(_shape(x)) == len(_shape(y)) for x, y in zip(body.invars, equation.invars, strict=True))
    while True:
        flops, used = _walk(body, wanted)
        again = used[whole - carried : whole]
        if all(before or not now for before, now in zip(wanted, again, strict=False)):
            return flops, used
        wanted = [*(a or b for a, b in zip(wanted, again, strict=False)), *wanted[carried:]]


def _dot(equation: JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    return 2 * math.prod(_shape(equation.outvars[0])) * math.prod(_shape(equation.invars[0])[i] for i in contracted)


def _ragged_dot(equation: JaxprEqn) -> int:
    """Returns the FLOPs of a product in which each row of the left operand meets one group of the right operand."""
    dimensions = equation.params["ragged_dot_dimension_numbers"]
    (_, contracted), (_, batch) = dimensions.dot_dimension_numbers
    shared = {*contracted, *batch, *dimensions.rhs_group_dimensions}
    free = (size for i, size in enumerate(_shape(equation.invars[1])) if i not in shared)
    return 2 * math.prod(_shape(equation.invars[0])) * math.prod(free)


def _convolution(equation: JaxprEqn) -> int:
    # Each output value sums over all kernel dimensions but the output channels. The input channels of the kernel are
    # those of one group. A dilated input, as in the gradient of a strided convolution, is mostly zeros.
    kernel, dimensions = _shape(equation.invars[1]), equation.params["dimension_numbers"]
    products = math.prod(_shape(equation.outvars[0])) * math.prod(kernel) // kernel[dimensions.rhs_spec[0]]
    return 2 * products // math.prod(equation.params["lhs_dilation"])


_PRODUCTS: dict[str, Callable[[JaxprEqn], int]] = {
    "dot_general": _dot,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _convolution,
}
_CALLBACKS = ("debug_callback", "debug_print", "io_callback", "pure_callback")


def has_convolution(jaxpr: Jaxpr) -> bool:
    """Returns whether a jaxpr, or a jaxpr nested in it, has a convolution."""
    return any(
        equation.primitive.name == "conv_general_dilated" or any(map(has_convolution, inner_jaxprs(equation)))
        for equation in jaxpr.eqns
    )


def has_callback(jaxpr: Jaxpr) -> bool:
    """Returns whether a jaxpr, or a jaxpr nested in it, calls Python, as `jax.debug.print` does."""
    return any(
        equation.primitive.name in _CALLBACKS or any(map(has_callback, inner_jaxprs(equation)))
        for equation in jaxpr.eqns
    )


def has_unknown_length(jaxpr: Jaxpr) -> bool:
    """Returns whether products are computed in a while loop of unknown length, so that `count_flops` is too low."""
    return any(
        any(map(count_flops if equation.primitive.name == "while" else has_unknown_length, inner_jaxprs(equation)))
        for equation in jaxpr.eqns
    )


def _shape(variable: Var | Literal) -> tuple[int, ...]:
    return getattr(variable.aval, "shape", ())


def model_flops(spec: StepSpec, metric_names: tuple[str, ...], state: TrainState, batch: Batch) -> int:
    """Returns the FLOPs of the loss and its gradient for a global batch; of the whole step if the Task has an `update`.

    It is what the model computes by definition, whatever the mesh, the platform and `train.remat`. As in appendix B of
    PaLM (Chowdhery et al. 2022), the products of the loss and its gradient count, and no recomputation. In addition,
    causal attention counts half of its products (as in Dao 2023, FlashAttention-2), and of experts the choices of the
    tokens count, whatever the capacity.

    It traces the loss once more, for one device: with plain attention (`layers/reference.py`), unsplit batches,
    dropless experts, and no `jax.checkpoint`. An optimizer's products do not count. Attention that an author writes
    without `engine.layers.attention` counts in full, and so does recomputation in a `jax.custom_vjp` or an `update`.

    Args:
        spec: parts of the train step.
        metric_names: names of the Task's metrics.
        state: abstract state.
        batch: abstract global batch.
    """
    layout = dataclasses.replace(
        spec.layout, mesh=one_device(spec.mesh), remat="none", counts_flops=True, offload_optimizer=False, used=set()
    )
    reference = dataclasses.replace(spec, layout=layout, accumulate=1, opt_shardings=None)

    def step(state: TrainState, batch: Batch, key: jax.Array) -> PyTree:
        if has_own_update(spec.task):
            return own_update(reference, state, batch, key, state.step)
        return gradients(reference, metric_names, state, batch, key, state.step)

    args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state, batch))
    traced = jax.make_jaxpr(with_layout(layout, step))(*args, abstract_key())
    return count_flops(traced.jaxpr)
