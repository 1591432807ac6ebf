"""What is quantized and how: a scheme, its layers, and the products that it computes instead of those in floats."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np

from engine.base.errors import ConfigError, did_you_mean
from engine.quantization import walk
from engine.quantization.layers import Layer
from engine.quantization.products import Product
from engine.quantization.rounding import encoded, input_codes_of, largest_code
from engine.quantization.views import Followed
from engine.quantization.walk import Walk

SCALE, INPUT_SCALE = "_scale", "_input_scale"
"""Ends of the names of arrays with the scales of a weight, and with the scale of the inputs of its products."""
BITS = 8

type Form = Literal["integer", "qdq"]
"""How a product with integer inputs is written: with integer operands, or with operands that are turned back into
floats, which programs for other machines (ONNX: QuantizeLinear, DequantizeLinear) recognise."""


@dataclasses.dataclass(frozen=True)
class Scheme:
    """In what the weights and the inputs of products are stored.

    Attributes:
        name: as in `--quantize`.
        dtype: of the stored weights.
        inputs: whether the inputs of the products are rounded, too.
    """

    name: str
    dtype: str
    inputs: bool

    @property
    def is_integer(self) -> bool:
        """Whether weights are codes with scales."""
        return self.dtype == "int8"


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("int8", "int8", True),
        Scheme("int8-weights", "int8", False),
        Scheme("fp16", "float16", True),
        Scheme("bf16", "bfloat16", True),
    )
}


def scheme_of(name: str) -> Scheme:
    """Returns a scheme by its name. Raises ConfigError."""
    if name not in SCHEMES:
        raise ConfigError(f"quantize = {name!r}: unknown.{did_you_mean(name, SCHEMES)} Allowed: {', '.join(SCHEMES)}.")
    return SCHEMES[name]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is quantized and how. It says everything about the program but its arrays.

    Attributes:
        scheme: the scheme.
        calibration: method by which ranges are chosen.
        bits: of a code of a weight, 2 to 8; codes are stored in eight bits.
        layers: the quantized layers, in the order of the program.
        kept: names of the layers that stay in floats.
    """

    scheme: Scheme
    calibration: str
    bits: int
    layers: Sequence[Layer]
    kept: Sequence[str] = ()

    @property
    def name(self) -> str:
        """The scheme, and the bits of a weight if they are others than those in which it is stored."""
        return self.scheme.name if self.bits == BITS else f"{self.scheme.name} ({self.bits} bits)"

    def keeping(self, names: Sequence[str]) -> "Plan":
        """Returns the plan with more layers in floats."""
        layers = [layer for layer in self.layers if layer.name not in names]
        return dataclasses.replace(self, layers=layers, kept=(*self.kept, *names))

    def only(self, name: str) -> "Plan":
        """Returns the plan with one of its layers alone."""
        return self.keeping([layer.name for layer in self.layers if layer.name != name])

    def to_json(self) -> dict[str, Any]:
        """Returns the plan as JSON, which `from_json` reads."""
        layers = [
            {"weight": x.name, "shape": list(x.shape), "channels": list(x.channels), "products": x.products}
            for x in self.layers
        ]
        numbers = {"calibration": self.calibration, "bits": self.bits} if self.scheme.is_integer else {}
        return {"scheme": self.scheme.name, **numbers, "layers": layers, "kept": list(self.kept)}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """Returns the plan that `to_json` has written."""
        layers = []
        for x in found["layers"]:
            shared = tuple(axis for axis in range(len(x["shape"])) if axis not in x["channels"])
            layers.append(Layer(x["weight"], tuple(x["shape"]), shared, x["products"]))
        scheme = scheme_of(found["scheme"])
        return cls(scheme, found.get("calibration", ""), found.get("bits", BITS), layers, tuple(found["kept"]))

    def stored(self, weights: Mapping[str, Any], input_ranges: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the arrays of the quantized function, which may be traced.

        Args:
            weights: name -> weight in floats.
            input_ranges: name of a layer -> range of its inputs.

        Raises:
            ConfigError: two arrays would have one name.
        """
        found, layers = dict[str, Any](), {layer.name: layer for layer in self.layers}
        for name, x in weights.items():
            if name not in layers or not self.scheme.is_integer:
                found[name] = x.astype(self.scheme.dtype) if name in layers else x
                continue
            codes, scale = self.encoded(layers[name], x)
            new: dict[str, Any] = {name: codes, name + SCALE: scale}
            if self.scheme.inputs:
                limits = np.asarray(input_ranges[name], np.float32)
                new[name + INPUT_SCALE] = np.where(limits == 0, 1, limits).astype(np.float32) / largest_code(BITS)
            if taken := (new.keys() - {name}) & weights.keys():
                raise ConfigError(f"quantize: the model has {min(taken)!r}, which would name a scale. Keep {name}.")
            found |= new
        return found

    def encoded(self, layer: Layer, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the codes and the scales of a weight."""
        return encoded(weight, layer.shared, self.bits, self.calibration == "mse")

    def function(
        self, function: Callable[..., Any], weights: Mapping[str, Any], form: Form = "integer"
    ) -> Callable[[Mapping[str, Any], Any], Any]:
        """Returns the quantized function of the arrays that `stored` returns.

        Args:
            function: `function(weights, inputs)` in floats.
            weights: name -> weight in floats, as an array or as its shape and dtype.
            form: how products are written.
        """
        specs = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
        layers = {layer.name for layer in self.layers}

        def call(arrays: Mapping[str, Any], inputs: Any) -> Any:
            followed = {name: self._followed(name, arrays) if name in layers else arrays[name] for name in specs}
            return walk.run(self._walk(form), function, specs, followed, inputs)

        return call

    def _followed(self, name: str, arrays: Mapping[str, Any]) -> Followed:
        return Followed.of(name, arrays[name], arrays.get(name + SCALE), arrays.get(name + INPUT_SCALE))

    def _walk(self, form: Form) -> Walk:
        if not self.scheme.is_integer:
            return _Half(self.scheme.dtype)
        if not self.scheme.inputs:
            return _Restored()
        return _Integer() if form == "integer" else _Rounded()


class _Restored(Walk):
    """Products in floats, with weights that are turned into floats."""

    def product(self, product: Product, x: jax.Array, weight: Followed) -> jax.Array:
        return product(x, weight.floats(product.weight_dtype))


class _Rounded(_Restored):
    """Products in floats, of rounded inputs and rounded weights."""

    def product(self, product: Product, x: jax.Array, weight: Followed) -> jax.Array:
        scale = _input_scale(weight)
        rounded = input_codes_of(x, scale).astype(jnp.float32) * scale
        return super().product(product, rounded.astype(x.dtype), weight)


class _Integer(_Rounded):
    """Products of integers, summed as int32."""

    def product(self, product: Product, x: jax.Array, weight: Followed) -> jax.Array:
        terms = math.prod(weight.array.shape[axis] for axis in product.contracted(weight))
        if terms * 128 * largest_code(BITS) >= 2**31:  # from 132,105 terms on, the sum may not fit
            return super().product(product, x, weight)
        scale = _input_scale(weight)
        assert weight.scale is not None
        total = product(input_codes_of(x, scale), weight.array, jnp.int32)
        factors = scale * product.result_scale(weight.scale, x.ndim)
        return (total.astype(jnp.float32) * factors).astype(product.dtype)


class _Half(Walk):
    """Products of 16-bit floats, summed as float32."""

    def __init__(self, dtype: str):
        super().__init__()
        self._dtype = jnp.dtype(dtype)

    def child(self) -> "_Half":
        return _Half(self._dtype.name)

    def product(self, product: Product, x: jax.Array, weight: Followed) -> jax.Array:
        largest = float(jnp.finfo(self._dtype).max)
        inputs = jnp.clip(x.astype(jnp.float32), -largest, largest).astype(self._dtype)
        return product(inputs, weight.floats(self._dtype), jnp.float32).astype(product.dtype)


def _input_scale(weight: Followed) -> jax.Array:
    """Returns the scale of the inputs: the largest, where a product has those of all iterations of a loop."""
    assert weight.input_scale is not None
    return jnp.max(weight.input_scale) if weight.input_scale.ndim else weight.input_scale
