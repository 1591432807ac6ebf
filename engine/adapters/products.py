"""What a kernel with adapters computes: the kernel as a whole, or the result of a dense layer without it.

Everything here is used while tracing. A product is computed in the dtype of the matrices, which is that of the step.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from engine.adapters.quantized import kernel_of
from engine.adapters.settings import Adapter
from engine.base.errors import TaskError
from engine.data.context import current


@dataclasses.dataclass(frozen=True)
class Applied:
    """An adapter of one kernel, part of the structure of a module.

    Attributes:
        kernel: attribute of the module that holds the kernel.
        name: of the adapter.
        adapter: its settings.
        number: identifies the kernel, for random numbers.
    """

    kernel: str
    name: str
    adapter: Adapter
    number: int

    def attribute(self, part: str) -> str:
        """Returns the attribute for "a", "b", "magnitude" or "layer"."""
        return f"{self.kernel}_{self.name}_{part}"

    def part(self, module: nnx.Module, part: str) -> jax.Array:
        """Returns the array of a part."""
        return vars(module)[self.attribute(part)].get_value()

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that the adapter adds to the module."""
        magnitude = ("magnitude",) if self.adapter.dora else ()
        return ("a", "b", *magnitude, *(("layer",) if self.adapter.dropout else ()))

    def product(self, module: nnx.Module) -> jax.Array:
        """Returns `scale * A @ B`, `[*leading, in, out]`."""
        return self.adapter.scale * (self.part(module, "a") @ self.part(module, "b"))

    def column_factor(self, module: nnx.Module) -> jax.Array:
        """Returns the factor of each column in DoRA, `[*leading, out]`: its magnitude divided by its norm.

        The magnitude is stored as its difference from the norm of the kernel, since the kernel may be read after the
        adapter was made. The norms have no gradient (Liu et al. 2024, section 4.3).
        """
        matrix = self.matrix(module)
        norms = (jnp.linalg.norm(jax.lax.stop_gradient(x), axis=-2) for x in (matrix, matrix + self.product(module)))
        before, norm = norms
        return (before + self.part(module, "magnitude")) / jnp.where(norm == 0, 1, norm)

    def matrix(self, module: nnx.Module) -> jax.Array:
        """Returns the kernel as matrices `[*leading, in, out]`."""
        a, b = self.part(module, "a"), self.part(module, "b")
        return kernel_of(module, self.kernel).reshape(*a.shape[:-1], b.shape[-1])


def linear(function: Callable[..., Any], *args: Any, barrier: bool = False) -> Any:
    """Returns `function(*args)`, a product with a kernel, whose backward pass computes the kernel again.

    A stack would keep the kernels of all its layers from the forward to the backward pass. The product itself is not
    computed again, since its gradient does not need it.

    Args:
        function: computes the product.
        *args: its inputs.
        barrier: also outside of a loop, where XLA would otherwise keep a kernel instead of decoding it again.
    """
    return jax.checkpoint(function, prevent_cse=barrier)(*args)


def effective(module: nnx.Module, name: str, adapters: tuple[Applied, ...]) -> jax.Array:
    """Returns the kernel `name` of a module with its adapters."""
    total = kernel = kernel_of(module, name)
    for one in adapters:
        if one.kernel == name:
            total = total + one.product(module).reshape(kernel.shape)
            if one.adapter.dora:  # alone, as `modules.py` has checked
                columns = one.column_factor(module)[..., None, :]
                total = (columns * total.reshape(one.matrix(module).shape)).reshape(kernel.shape)
    return total


def dense(module: Any, base: Callable[[jax.Array], jax.Array], x: jax.Array, y: jax.Array, one: Applied) -> jax.Array:
    """Returns what an adapter adds to the result of a dense layer.

    Args:
        module: the layer.
        base: the layer without adapters.
        x: input `[..., in]`.
        y: result of the layer without adapters `[..., out]`.
        one: the adapter.
    """
    a, b = (one.part(module, part).astype(y.dtype) for part in "ab")
    drops = one.adapter.dropout > 0 and not module.deterministic
    own = _dropped(module, one, x) if drops else x
    product = one.adapter.scale * ((own.astype(y.dtype) @ a) @ b)
    if not one.adapter.dora:
        return product.astype(y.dtype)
    plain, bias = base(own) if drops else y, vars(module).get("bias")
    plain = plain if bias is None else plain - bias.get_value().astype(y.dtype)
    factor = one.column_factor(module).astype(y.dtype)
    return ((factor - 1) * plain + factor * product).astype(y.dtype)


def _dropped(module: nnx.Module, one: Applied, x: jax.Array) -> jax.Array:
    """Returns the input with entries dropped by the keys of its rows, which the step has for each example."""
    context = current()
    keys, rows = None if context is None else context.rng, x.shape[0] if x.ndim > 1 else 0
    if not isinstance(keys, jax.Array) or keys.ndim != 1 or not rows or rows % len(keys):
        found = "no key for each example" if keys is None else f"{rows} rows for the keys of {jnp.shape(keys)} examples"
        raise TaskError(
            f"adapter {one.name}: dropout = {one.adapter.dropout}: found {found} in {type(module).__name__}. Dropout "
            "needs a Task with `loss` on one dataset, batches in the first dimension, and no pipeline. Use dropout=0."
        )
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, one.number)
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, one.part(module, "layer"))
    if (count := rows // len(keys)) > 1:
        keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(keys, jnp.arange(count)).reshape(-1)
    rate = one.adapter.dropout
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
