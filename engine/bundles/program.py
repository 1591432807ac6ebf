"""Programs in StableHLO, which `jax.export` writes and any later JAX of the next months runs."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import jax
from jax import export

from engine.base.errors import ConfigError, TaskError, first_line
from engine.base.extras import install_command
from engine.base.user_errors import location
from engine.bundles.forward import Arrays, Forward, Specs
from engine.training.author_errors import leaf_text

BATCH = "batch"
"""Name of the number of rows, in the shapes of a program that takes any number."""
PLATFORMS = ("cpu", "cuda", "tpu")
"""Platforms of a program by default."""
ALL_PLATFORMS = (*PLATFORMS, "rocm")

type Shapes = Mapping[str, str]
"""Name of an input -> its dimensions with the batch: "batch, length"."""


@dataclasses.dataclass(frozen=True)
class Program:
    """An exported program.

    Attributes:
        stablehlo: the serialized `jax.export.Exported` of `(weights, inputs) -> outputs`, or of `inputs -> outputs` if
            it holds the weights.
        inputs: name -> shape and dtype; a dimension of any size is symbolic.
        outputs: likewise.
        version: version of the calling convention of `jax.export`.
    """

    stablehlo: bytes
    inputs: Specs
    outputs: Specs
    version: int


def input_specs(forward: Forward, rows: int | None, shapes: Shapes) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the inputs of a program with their batch.

    Args:
        forward: the function.
        rows: rows of each call; None: any number.
        shapes: other dimensions of some inputs.

    Raises:
        ConfigError: a shape cannot be read, or has another number of dimensions than its input.
    """
    batch = BATCH if rows is None else str(rows)
    scope, found = export.SymbolicScope(), {}
    for name, x in forward.inputs.items():
        text = shapes.get(name) or ", ".join([batch, *map(str, x.shape)])
        try:
            dimensions = export.symbolic_shape(text, scope=scope)
        except Exception as error:  # JAX has errors of its own for this
            raise ConfigError(
                f"--shape={name}:{text}: {first_line(error)}. Write numbers and names: batch, 8."
            ) from error
        wanted = [*map(str, x.shape)]
        if len(dimensions) != len(wanted) + 1:
            raise ConfigError(
                f"--shape={name}:{text}: found {len(dimensions)} dimensions, but {name} has {len(wanted) + 1}: "
                f"{', '.join([batch, *wanted])}."
            )
        if wrong := [
            size for size in map(str, dimensions) if not (size.isidentifier() or (size.isdecimal() and int(size)))
        ]:
            raise ConfigError(f"--shape={name}:{text}: found {wrong[0]}. Write numbers from 1 and names: batch, 8.")
        found[name] = jax.ShapeDtypeStruct(dimensions, x.dtype)
    return found


def export_program(
    forward: Forward,
    inputs: Specs,
    where: str,
    platforms: Sequence[str] = PLATFORMS,
    holds_weights: bool = False,
) -> Program:
    """Exports a function.

    Args:
        forward: the function.
        inputs: shapes of its inputs, with symbolic dimensions.
        where: "Task.method", for error texts.
        platforms: on which the program runs.
        holds_weights: the program holds the weights as constants.

    Raises:
        TaskError: the function cannot be traced with these shapes.
    """
    weights = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in forward.weights.items()}
    function: Callable[..., dict[str, Any]] = forward.function
    arguments: tuple[Specs, ...] = (weights, inputs)
    if holds_weights:
        function, arguments = lambda inputs: forward.function(forward.weights, inputs), (inputs,)
    try:
        with _without_source_lines():
            exported = export.export(jax.jit(function), platforms=list(platforms))(*arguments)
    except Exception as error:  # JAX has many, such as its own for the comparison of symbols
        raise _explained(error, where, inputs) from error
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    specs = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in outputs.items()}
    return Program(bytes(exported.serialize()), inputs, specs, exported.calling_convention_version)


def compiled(stablehlo: bytes, weights: Arrays | None) -> Callable[[Arrays], dict[str, Any]]:
    """Returns a serialized program as a function `inputs -> outputs`.

    Args:
        stablehlo: the program.
        weights: name -> array, also of other entry points; None if the program holds them.
    """
    exported = export.deserialize(bytearray(stablehlo))
    call = jax.jit(exported.call)
    if weights is None:
        return lambda inputs: jax.device_get(call(dict(inputs)))
    (names, _), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    placed = jax.device_put({name: weights[name] for name in names})
    return lambda inputs: jax.device_get(call(placed, dict(inputs)))


def symbols_of(inputs: Specs) -> Iterator[str]:
    """Yields the names of the dimensions of any size."""
    yield from dict.fromkeys(str(size) for x in inputs.values() for size in x.shape if not isinstance(size, int))


_NO_SOURCE = {"jax_traceback_in_locations_limit": 0, "jax_hlo_source_file_canonicalization_regex": ".*"}


@contextlib.contextmanager
def _without_source_lines() -> Iterator[None]:
    """Leaves source files and their lines out of programs, so that every machine writes the same bytes."""
    before = {name: getattr(jax.config, name) for name in _NO_SOURCE}
    try:
        for name, value in _NO_SOURCE.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def check_writable() -> None:
    """Raises ConfigError if the package is missing with which JAX writes programs."""
    if find_spec("flatbuffers") is None:
        raise ConfigError(
            "--format=stablehlo: JAX needs the package flatbuffers to write programs. Install it: "
            f"{install_command('bundle')}."
        )


def _explained(error: Exception, where: str, inputs: Specs) -> TaskError:
    place = f" ({found})" if (found := location(error)) else ""
    advice = "Use plain operations of jax.numpy there"
    if re.search(r"_DimExpr|symbolic|[Ii]nconclusive|polymorph", f"{type(error).__name__} {error}"):
        advice = (
            f"In a program for any {' and '.join(symbols_of(inputs))}, use x.shape[0] instead of len(x), and no "
            "condition on a size; or export it for one size: --batch=N, --shape=NAME:SIZE,SIZE"
        )
    shapes = ", ".join(f"{name} {leaf_text(x)}" for name, x in inputs.items())
    return TaskError(
        f"{where}: cannot be exported with the inputs {shapes}{place}: {type(error).__name__}: {_line(error)}. "
        f"{advice}."
    )


def _line(error: Exception) -> str:
    """Returns the first line of an error, and the next one if the first one ends with a colon."""
    lines = str(error).splitlines()[:2] or [type(error).__name__]
    return (" ".join(lines) if lines[0].endswith(":") else first_line(error)).rstrip(".")
