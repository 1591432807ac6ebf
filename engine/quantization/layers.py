"""Finds the layers of a traced function: the weights that are operands of its products."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from engine.quantization import walk
from engine.quantization.products import Product
from engine.quantization.views import Followed
from engine.quantization.walk import Walk


@dataclasses.dataclass(frozen=True)
class Layer:
    """A weight that is an operand of products.

    Attributes:
        name: name of the weight.
        shape: its shape. The layers of a stack are one layer.
        shared: dimensions of the weight over which a product sums. Their entries share a scale; the others are the
            output channels.
        products: number of products in the program; 0 for a table, which other operations read.
    """

    name: str
    shape: tuple[int, ...]
    shared: tuple[int, ...]
    products: int

    @property
    def channels(self) -> tuple[int, ...]:
        """Dimensions that have a scale for each entry."""
        return tuple(axis for axis in range(len(self.shape)) if axis not in self.shared)

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """Shape of the scales."""
        return tuple(1 if axis in self.shared else size for axis, size in enumerate(self.shape))


def layers_of(function: Callable[..., Any], weights: Mapping[str, Any], inputs: Any) -> dict[str, Layer]:
    """Returns name -> layer, in the order of the program; arguments as for `find_layers`."""
    return find_layers(function, weights, inputs)[0]


def find_layers(
    function: Callable[..., Any], weights: Mapping[str, Any], inputs: Any
) -> tuple[dict[str, Layer], tuple[str, ...]]:
    """Returns name -> layer, in the order of the program, and weights of which other products may be out of reach.

    Computes nothing.

    Args:
        function: `function(weights, inputs)`.
        weights: name -> weight, as an array or as its shape and dtype.
        inputs: likewise, of a batch.
    """
    finder = _Finder()

    def call(arrays: Mapping[str, jax.Array], inputs: Any) -> Any:
        finder.found.clear()
        return walk.run(finder, function, arrays, followed(arrays), inputs)

    specs = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    jax.eval_shape(call, specs, inputs)
    layers = {
        name: Layer(name, tuple(specs[name].shape), tuple(sorted(shared)), products)
        for name, (shared, products) in finder.found.items()
    }
    return layers, tuple(sorted(finder.out_of_reach))


def tables_of(weights: Mapping[str, Any], layers: Mapping[str, Layer]) -> dict[str, Layer]:
    """Returns name -> weight of two or more dimensions that is no operand of a product, such as an embedding."""
    return {
        name: Layer(name, tuple(x.shape), (), 0)
        for name, x in weights.items()
        if name not in layers and _may_be_operand(x)
    }


def followed(arrays: Mapping[str, jax.Array]) -> dict[str, Any]:
    """Returns name -> weight, as `Followed` if it may be an operand of a product."""
    return {name: Followed.of(name, x) if _may_be_operand(x) else x for name, x in arrays.items()}


def _may_be_operand(x: Any) -> bool:
    return x.ndim > 1 and jnp.issubdtype(x.dtype, jnp.floating)


class _Finder(Walk):
    def __init__(self):
        super().__init__()
        self.found: dict[str, tuple[frozenset[int], int]] = {}
        self.out_of_reach: set[str] = set()

    def child(self) -> "_Finder":
        inner = _Finder()
        inner.found, inner.out_of_reach = self.found, self.out_of_reach
        return inner

    def unreached(self, equation: JaxprEqn, names: Sequence[str]) -> None:
        self.out_of_reach.update(names)

    def product(self, product: Product, x: jax.Array, weight: Followed) -> jax.Array:
        shared, count = self.found.get(weight.name, (frozenset[int](), 0))
        self.found[weight.name] = (shared | weight.origins_of(product.contracted(weight)), count + 1)
        return product(x, weight.floats(product.weight_dtype))
