"""Slices: subsets of the examples of an evaluation, each given by a function of one example."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from engine.config.errors import TaskError, did_you_mean
from engine.config.schema import Target
from engine.config.target import check, first_parameter, resolve
from engine.config.user_errors import location
from engine.metrics.values import describe_value
from engine.types import PyTree

type SliceFunction = Callable[[PyTree], Any]
"""One example -> whether it belongs to the slice, or name -> whether it belongs to this part of the slice."""


def build_slices(sections: Mapping[str, Target], where: str) -> dict[str, SliceFunction]:
    """Returns the functions of the slices of an evaluation.

    Args:
        sections: slice -> its config section.
        where: config section of the evaluation.

    Raises:
        ConfigError: a function does not exist, or does not take the arguments.
    """
    found = {}
    for name, section in sections.items():
        at = f"{where}.slices.{name}"
        check(section, at, given=first_parameter(section, at))
        found[name] = functools.partial(resolve(section, at), **section.arguments)
    return found


def slice_masks(functions: Mapping[str, SliceFunction], examples: PyTree, where: str) -> dict[str, jax.Array]:
    """Returns slice -> bool `[batch]`: the examples that belong to it; to be traced.

    Args:
        functions: slice -> its function.
        examples: pytree of arrays `[batch, ...]`.
        where: config section of the evaluation, for error texts.

    Raises:
        TaskError: two slices have one name, a key of the example is missing, or a function returns something else.
    """
    if not functions:
        return {}
    found: dict[str, jax.Array] = {}
    for name, function in functions.items():
        at = f"{where}.slices.{name}"
        for part, mask in _call(function, examples, at).items():
            full = f"{name}/{part}" if part else name
            if full in found:
                raise TaskError(f"{at}: two slices are named {full!r}. Rename one of them.")
            found[full] = mask
    return found


def _call(function: SliceFunction, examples: PyTree, where: str) -> dict[str, jax.Array]:
    def masks(example: PyTree) -> dict[str, jax.Array]:
        result = function(example)
        named = {str(key): mask for key, mask in result.items()} if isinstance(result, Mapping) else {"": result}
        for part, mask in named.items():
            if jnp.shape(mask) != () or getattr(mask, "dtype", type(mask)) not in (bool, jnp.bool_):
                at = f" for {part!r}" if part else ""
                raise TaskError(
                    f"{where} returned {describe_value(mask)}{at}. Return one True or False for the example, or a dict "
                    "of them, name -> True or False."
                )
        return {part: jnp.asarray(mask) for part, mask in named.items()}

    try:
        return jax.vmap(masks)(examples)
    except KeyError as error:
        key = str(error.args[0]) if error.args else ""
        names = [str(name) for name in examples] if isinstance(examples, Mapping) else []
        raise TaskError(
            f"{where}: the example has no {key!r} ({location(error)}).{did_you_mean(key, names)} It holds "
            f"{', '.join(names)}. Text is not among them: it stays on the host, so give the example a number instead."
        ) from error
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise TaskError(
            f"{where}: the function is compiled, and it uses a value of the example as a number of Python or NumPy "
            f"({location(error)}). Use jax.numpy, and the operators & and | instead of `and`, `or` and `if`."
        ) from error
