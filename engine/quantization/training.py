"""`aware`, which wraps the Task of a config so that it is trained for products of fewer bits."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from engine.base.errors import ConfigError, TaskError
from engine.metrics.values import describe_value
from engine.quantization import walk
from engine.quantization.methods import with_products
from engine.quantization.plan import BITS
from engine.quantization.products import Product
from engine.quantization.rounding import fake_quantized, scale_of
from engine.quantization.views import Followed
from engine.quantization.walk import Walk
from engine.training.task import Task

_ROUNDED = "_rounded_in_training"
"""Attribute of the class of a Task that is trained with rounded products."""


def aware(task: Task, bits: int = 8, input_bits: int | None = 8, keep: str = "") -> Task:
    """Returns a Task like `task`, whose products with weights are those of rounded weights and rounded inputs.

    The gradient passes through the rounding where a value is in the range of its codes (straight-through, Jacob et al.
    2018, arXiv:1712.05877). The parameters keep their names and stay floats, so that `init.checkpoint` reads those of a
    run without rounding. Weights have a scale for each output channel. Inputs have one for each row of the batch,
    from its largest magnitude, so that rows do not depend on each other.

    Args:
        task: a Task, in a config a section with a target.
        bits: of a weight, 2 to 8.
        input_bits: of an input of a product; None leaves inputs in floats.
        keep: regular expression of the weights that stay in floats, such as "^head/"; "" for none.

    Raises:
        ConfigError: a setting has a wrong value.
        TaskError: when the Task is traced, a product is where it cannot be rounded, such as in a pipeline.
    """
    if not isinstance(task, Task):
        raise ConfigError(
            f"task.task: found {describe_value(task)}. Give the Task as a section: task=dict(target='package.Name')."
        )
    for name, found in (("bits", bits), ("input_bits", 8 if input_bits is None else input_bits)):
        if found not in range(2, BITS + 1):
            raise ConfigError(f"task.{name} = {found!r}. Allowed: a whole number from 2 to {BITS}.")
    try:
        kept = re.compile(keep)
    except re.error as error:
        raise ConfigError(f"task.keep = {keep!r} is no regular expression: {error}.") from None

    def compute(function: Any, weights: Mapping[str, jax.Array]) -> Any:
        followed = {
            name: x if keep and kept.search(name) else Followed.of(name, x)
            for name, x in weights.items()
            if x.ndim > 1 and jnp.issubdtype(x.dtype, jnp.floating)
        }
        return walk.run(_Aware(bits, input_bits), function, weights, {**weights, **followed})

    found = with_products(task, compute)
    setattr(type(found), _ROUNDED, (bits, keep))
    return found


def trained_bits(task: Task) -> tuple[int, str] | None:
    """Returns the bits of a weight and the expression of the weights in floats of a Task of `aware`; else None."""
    return getattr(type(task), _ROUNDED, None)


class _Aware(Walk):
    """Products of rounded floats, with gradients."""

    keeps_remat = True

    def __init__(self, bits: int, input_bits: int | None):
        super().__init__()
        self._bits, self._input_bits = bits, input_bits

    def child(self) -> "_Aware":
        return _Aware(self._bits, self._input_bits)

    def unreached(self, equation: JaxprEqn, names: Sequence[str]) -> None:
        raise TaskError(
            f"engine.quantization.aware: products with {', '.join(names)} may be within a {equation.primitive.name}, "
            "where they are not rounded. Use mesh.pipeline=1, or leave these weights in floats: "
            f"task.keep='^({'|'.join(map(re.escape, names))})$'."
        )

    def product(self, product: Product, x: jax.Array, weight: Followed) -> jax.Array:
        kernel = weight.array
        scale = scale_of(jax.lax.stop_gradient(kernel), product.contracted(weight), self._bits)
        rounded = fake_quantized(kernel, scale, self._bits).astype(product.weight_dtype)
        if self._input_bits is not None:
            shared = [axis for axis in range(x.ndim) if axis != product.row_axis]
            x = fake_quantized(x, scale_of(jax.lax.stop_gradient(x), shared, self._input_bits), self._input_bits)
        return product(x, rounded)
