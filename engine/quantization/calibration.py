"""Ranges of the inputs of each layer over the batches of a dataset."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine.base.errors import ConfigError, DataError, did_you_mean
from engine.quantization import walk
from engine.quantization.products import Product
from engine.quantization.rounding import best_range, percentile_range
from engine.quantization.views import Followed
from engine.quantization.walk import Walk

PERCENTILE = 99.9
BINS = 2048
"""Parts of the range of a layer in which its inputs are counted."""

type Function = Callable[[Mapping[str, Any], Any], Any]
"""`function(weights, inputs)`."""
type Batches = Sequence[Any]

METHODS = ("percentile", "mse", "max")


def check_method(method: str) -> None:
    """Raises ConfigError for an unknown method of calibration."""
    if method not in METHODS:
        near = did_you_mean(method, METHODS)
        raise ConfigError(f"calibration = {method!r}: unknown.{near} Allowed: {', '.join(METHODS)}.")


def input_ranges(
    function: Function,
    weights: Mapping[str, Any],
    batches: Batches,
    names: Sequence[str],
    method: str,
    bits: int,
) -> dict[str, np.ndarray]:
    """Returns the range of the inputs of each layer: a magnitude, in a loop over layers one for each, `[loop, ...]`.

    Args:
        function: the function, in floats.
        weights: name -> weight.
        batches: inputs of the function; they are read twice.
        names: the layers.
        method: "max", "percentile" of the magnitudes, or "mse" for the range with the smallest squared error.
        bits: of an input.

    Raises:
        DataError: inputs are not finite.
    """
    check_method(method)
    specs = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}

    def observed(observer: Walk, arrays: Mapping[str, Any], limits: Mapping[str, Any], inputs: Any) -> Any:
        followed = {
            name: Followed.of(name, x, input_scale=limits.get(name)) if name in names else x
            for name, x in arrays.items()
        }
        walk.run(observer, function, specs, followed, inputs)
        return observer.values

    find_largest = jax.jit(lambda inputs, arrays: observed(_Largest(), arrays, {}, inputs))
    largest = _over(batches, find_largest, weights, np.maximum)
    for name, found in largest.items():
        if not np.isfinite(found).all():
            raise DataError(
                f"calibration: inputs of {name} are infinite or no numbers. Check the weights of the run, and the data "
                "of the calibration."
            )
    if method == "max":
        return largest
    count = jax.jit(lambda inputs, arrays: observed(_Counts(), arrays, largest, inputs))
    counts = _over(batches, count, weights, np.add)

    def chosen(counts: np.ndarray, limit: float) -> float:
        return (
            percentile_range(counts, limit, PERCENTILE) if method == "percentile" else best_range(counts, limit, bits)
        )

    found = {}
    for name, limits in largest.items():
        pairs = zip(counts[name].reshape(-1, BINS), limits.reshape(-1).tolist(), strict=True)
        found[name] = np.asarray([chosen(*pair) for pair in pairs], np.float32).reshape(limits.shape)
    return found


def _over(
    batches: Batches,
    observe: Callable[[Any, Mapping[str, Any]], Mapping[str, jax.Array]],
    weights: Mapping[str, Any],
    combine: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> dict[str, np.ndarray]:
    """Returns what is observed in all batches."""
    found: dict[str, np.ndarray] = {}
    for inputs in batches:
        for name, value in observe(inputs, dict(weights)).items():
            array = np.asarray(value)
            array = array.astype(np.int64) if array.dtype.kind == "i" else array
            found[name] = combine(found[name], array) if name in found else array
    return found


class _Largest(Walk):
    """Records the largest magnitude of the inputs of each layer."""

    def product(self, product: Product, x: jax.Array, weight: Followed) -> jax.Array:
        self.record(weight.name, jnp.max(jnp.abs(x.astype(jnp.float32)), initial=0.0))
        return product(x, weight.floats(product.weight_dtype))

    def combine(self, values: jax.Array, other: jax.Array) -> jax.Array:
        return jnp.maximum(values, other)

    def reduce(self, values: jax.Array) -> jax.Array:
        return values.max(0)


class _Counts(Walk):
    """Counts the magnitudes of the inputs of each layer in equal parts of their range."""

    rank = 1

    def product(self, product: Product, x: jax.Array, weight: Followed) -> jax.Array:
        assert weight.input_scale is not None
        size = jnp.maximum(jnp.max(weight.input_scale), jnp.finfo(jnp.float32).tiny) / BINS
        part = jnp.clip(jnp.abs(x.astype(jnp.float32)) / size, 0, BINS - 1).astype(jnp.int32)
        self.record(weight.name, jnp.zeros(BINS, jnp.int32).at[part.reshape(-1)].add(1))
        return product(x, weight.floats(product.weight_dtype))

    def combine(self, values: jax.Array, other: jax.Array) -> jax.Array:
        return values + other

    def reduce(self, values: jax.Array) -> jax.Array:
        return values.sum(0)
