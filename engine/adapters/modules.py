"""Adds adapters to the modules of a model: two matrices for each kernel, and a class that applies them.

The class of the module becomes a subclass in which the kernel is `W + scale * A @ B`, so that every layer works which
reads its kernel as an attribute. A dense layer computes `x W + scale * (x A) B` instead: it needs no gradient of W.
"""

import functools
import re
import types
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from engine.adapters.matrices import Shape, initial, initial_magnitude, layer_numbers, shape_of
from engine.adapters.products import Applied, dense, effective, linear
from engine.adapters.quantized import KINDS, kernel_of, quantize, stored_as
from engine.adapters.settings import Adapter
from engine.base.errors import TaskError
from engine.checkpoint.warm_start import OPTIONAL
from engine.layers.dense import Dense
from engine.training.model import TRAINED

APPLIED = "low_rank_adapters"
"""Attribute of a module that lists its adapters."""


def add(
    model: nnx.Module, adapters: Mapping[str, Adapter], train: str, rngs: nnx.Rngs, base: str | None = None
) -> None:
    """Adds adapters to a model, and marks all other parameters as not trained.

    Args:
        model: the model; the classes of some of its modules change.
        adapters: name -> settings.
        train: regular expression of other parameters that are trained; "" for none.
        rngs: random keys for the initial values, which depend on the seed, the path and the name.
        base: how parameters that are not trained are stored: the name of a dtype, or "int8" or "nf4" for kernels with
            adapters, and bfloat16 for others; None for the dtype that they have.

    Raises:
        TaskError: an adapter matches no kernel, or one to which it cannot be added.
    """
    key, kernels = rngs.params(), dict(_kernels(model))
    found: dict[str, list[str]] = {name: [] for name in adapters}
    for path, (module, attribute, shape) in kernels.items():
        for name, adapter in adapters.items():
            if re.search(adapter.match, path):
                found[name].append(path)
                number = zlib.crc32(f"{path} {name}".encode())
                own = jax.random.fold_in(key, number)
                _add(module, path, Applied(attribute, name, adapter, number), shape, own)
    for name, paths in found.items():
        if not paths:
            raise TaskError(
                f"adapter {name}: match = {adapters[name].match!r} matches no kernel. Kernels: {', '.join(kernels)}."
            )
    if base in KINDS:
        for path in dict.fromkeys(path for paths in found.values() for path in paths):
            module, attribute, shape = kernels[path]
            quantize(module, attribute, shape, base, path)
    for path, param in _params(model).items():
        if not param.get_metadata().get(OPTIONAL) and not (train and re.search(train, path)):
            param.set_metadata(**{TRAINED: False})
            if base is not None and jnp.issubdtype(param.dtype, jnp.floating):
                param.set_value(param.get_value().astype("bfloat16" if base in KINDS else base))


def _kernels(model: nnx.Module) -> Iterator[tuple[str, tuple[nnx.Module, str, Shape]]]:
    """Yields path, owner, attribute and shape of each parameter that is a matrix."""
    owners: dict[int, str] = {}
    for where, module in nnx.iter_modules(model):
        for attribute, value in list(vars(module).items()):
            if not isinstance(value, nnx.Param) or (shape := shape_of(module, value)) is None:
                continue
            path = "/".join(map(str, (*where, attribute)))
            if id(value) in owners:
                raise TaskError(f"{path} is the parameter {owners[id(value)]}, too. Adapters need one owner.")
            owners[id(value)] = path
            yield path, (module, attribute, shape)


def _params(model: nnx.Module) -> dict[str, nnx.Param]:
    return {"/".join(map(str, path)): x for path, x in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def _add(module: Any, path: str, applied: Applied, shape: Shape, key: jax.Array) -> None:
    base, before = plain_class(type(module)), applied_to(module)
    _check(base, path, applied, before)
    a, b = initial(shape, applied.adapter.rank, key)
    values = {"a": a, "b": b, "magnitude": initial_magnitude(shape), "layer": layer_numbers(shape)}
    for part in applied.parts:
        if hasattr(module, applied.attribute(part)):
            raise TaskError(f"{path}_{applied.name}_{part} exists already. Give the adapter another name.")
        setattr(module, applied.attribute(part), values[part])
    setattr(module, APPLIED, (*before, applied))
    if applied.adapter.dropout:
        module.deterministic = True  # until `model.train()`, which the step calls
    module.__class__ = _adapted_class(base, tuple(sorted({one.kernel for one in (*before, applied)})))


def _check(base: type[nnx.Module], path: str, applied: Applied, before: tuple[Applied, ...]) -> None:
    """Raises TaskError for settings that the module or its other adapters do not allow."""
    adapter, others = applied.adapter, [one for one in before if one.kernel == applied.kernel]
    if adapter.dropout and not (is_dense(base) and applied.kernel == "kernel"):
        raise TaskError(
            f"adapter {applied.name}: dropout = {adapter.dropout}: {path} is a kernel of {base.__name__}, but only "
            "engine.layers.Dense and nnx.Linear have dropout. Use dropout=0, or another match."
        )
    if others and any(one.adapter.dora for one in (applied, *others)):
        raise TaskError(
            f"{path}: adapters {others[0].name} and {applied.name} both match, but DoRA scales the whole kernel. Use "
            "other matches, or dora=False."
        )


def applied_to(module: nnx.Module) -> tuple[Applied, ...]:
    """Returns the adapters of a module."""
    return vars(module).get(APPLIED, ())


class Kernel:
    """The attribute of a module that reads as the kernel with its adapters; what is stored stays the kernel alone."""

    def __init__(self, name: str):
        self.name = name

    def __get__(self, module: Any, owner: type | None = None) -> Any:
        if module is None:
            return self
        applied = applied_to(module)
        if any(one.adapter.dropout for one in applied) and not module.deterministic:
            raise TaskError(
                f"adapter {applied[0].name}: dropout = {applied[0].adapter.dropout}, but the model reads the attribute "
                f"{self.name} of a {type(module).__name__} instead of calling it. Use dropout=0, or another match."
            )
        return nnx.Param(effective(module, self.name, applied))

    def __set__(self, module: Any, value: Any) -> None:
        vars(module)[self.name] = value

    def __delete__(self, module: Any) -> None:
        del vars(module)[self.name]


_LINEAR = (nnx.Conv, nnx.ConvTranspose, nnx.LinearGeneral, nnx.Einsum)
"""Classes that compute a product with their kernel, and nothing else."""
_PLAIN: dict[type[nnx.Module], type[nnx.Module]] = {}
"""Class of modules with adapters -> their class before."""


def plain_class(kind: type[nnx.Module]) -> type[nnx.Module]:
    """Returns the class of a module before adapters were added."""
    return _PLAIN.get(kind, kind)


@functools.cache  # the class is a part of the structure of a model, which is compared
def _adapted_class(base: type[nnx.Module], kernels: tuple[str, ...]) -> type[nnx.Module]:
    """Returns the class of modules of class `base` whose attributes `kernels` have adapters."""
    members: dict[str, Any] = {name: Kernel(name) for name in kernels}
    members |= {"__module__": base.__module__, "__doc__": base.__doc__}
    if kernels == ("kernel",) and is_dense(base):
        members["__call__"] = _call
    elif any(issubclass(base, kind) and base.__call__ is kind.__call__ for kind in _LINEAR):
        members["__call__"] = _call_linear
    found = types.new_class(base.__name__, (base,), exec_body=lambda namespace: namespace.update(members))
    _PLAIN[found] = base
    return found


def is_dense(base: type[nnx.Module]) -> bool:
    """Whether modules of a class compute `x @ kernel (+ bias)`, and nothing else."""
    return any(issubclass(base, kind) and base.__call__ is kind.__call__ for kind in (Dense, nnx.Linear))


def _call(self: Any, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
    """Returns the result of a dense layer with its adapters."""

    def plain(x: jax.Array) -> jax.Array:
        return _without(self)(x, *args, **kwargs)

    is_float = stored_as(vars(self)["kernel"]) is None
    base = plain if is_float else functools.partial(linear, plain, barrier=True)
    y = base(x)
    return sum((dense(self, base, x, y, one) for one in applied_to(self)), start=y)


def _call_linear(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Returns the result of another linear layer, with the kernel that has the adapters."""
    call = plain_class(type(self)).__call__
    barrier = any(stored_as(vars(self)[one.kernel]) for one in applied_to(self))
    return linear(lambda *args: call(self, *args, **kwargs), *args, barrier=barrier)


def _without(module: nnx.Module) -> Any:
    """Returns a module of the plain class that has the same variables, with kernels of floats."""
    found = object.__new__(plain_class(type(module)))
    kernels = {one.kernel: vars(module)[one.kernel] for one in applied_to(module)}
    kernels = {name: x if stored_as(x) is None else nnx.Param(kernel_of(module, name)) for name, x in kernels.items()}
    vars(found).update({**vars(module), **kernels})
    return found
