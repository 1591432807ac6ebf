"""Slices: subsets of the examples of an evaluation, each given by a function of one example.

A function that JAX can trace is compiled with the model, so it takes no time of the host. Any other function, such as
one that reads text, is called on the host for each example.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from engine.base.errors import TaskError
from engine.base.types import PyTree
from engine.config.schema import Target
from engine.config.target import check, first_parameter, resolve
from engine.data.batch import Batch
from engine.data.collate import stack_examples
from engine.data.examples import Example
from engine.data.text import is_text, without_text
from engine.metrics.values import describe_value
from engine.training.author_errors import errors_described

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


@dataclasses.dataclass(frozen=True)
class Slices:
    """The slices of an evaluation; created by `Slices.of`.

    Attributes:
        functions: slice -> its function.
        on_host: slice whose function is called on the host -> its parts, such as "rain"; "" for one without parts.
        where: config section of the evaluation, for error texts.
        first: host batch of one example of the dataset, with its text.
    """

    functions: Mapping[str, SliceFunction] = dataclasses.field(default_factory=dict)
    on_host: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    where: str = ""
    first: PyTree = None

    @classmethod
    def of(cls, functions: Mapping[str, SliceFunction], example: Example, where: str) -> "Slices":
        """Returns the slices; finds out which functions are called on the host.

        Args:
            functions: slice -> its function.
            example: an example of the dataset, with its text.
            where: config section of the evaluation, for error texts.

        Raises:
            TaskError: a function cannot be traced, and fails on the host as well.
        """
        batch = Batch(stack_examples([example], str), np.ones(1, np.float32))
        on_host = {  # sorted: parts that come from a set have another order in each process
            name: tuple(sorted(_on_host(function, batch, None, f"{where}.slices.{name}")))
            for name, function in functions.items()
            if not _is_traceable(function, batch.examples)
        }
        return cls(functions, on_host, where, batch.examples)

    def members(self, batch: Batch) -> dict[str, np.ndarray]:
        """Returns full name -> bool `[rows]` for each slice on the host: the rows that belong to it.

        Args:
            batch: a host batch with its text.

        Raises:
            TaskError: a function fails, or returns something else than one bool for each of its parts.
        """
        found = {}
        for name, parts in self.on_host.items():
            masks = _on_host(self.functions[name], batch, parts, f"{self.where}.slices.{name}")
            found |= {_full(name, part): mask for part, mask in masks.items()}
        return found

    def abstract_members(self, rows: int, sharding: Sharding) -> dict[str, jax.ShapeDtypeStruct] | None:
        """Returns the global arrays of `members` for batches of `rows` rows, as jax.ShapeDtypeStruct; None for none."""
        names = [_full(name, part) for name, parts in self.on_host.items() for part in parts]
        return {full: jax.ShapeDtypeStruct((rows,), jnp.bool_, sharding=sharding) for full in names} or None

    def masks(self, examples: PyTree, members: Mapping[str, jax.Array] | None) -> dict[str, jax.Array]:
        """Returns full name -> bool `[batch]`: the examples that belong to each slice; to be traced.

        Args:
            examples: pytree of arrays `[batch, ...]`, without text.
            members: what `members` returns; None if only the names are of interest.

        Raises:
            TaskError: two slices have one name, or a function fails or returns something else.
        """
        found: dict[str, jax.Array] = {}
        for name, function in self.functions.items():
            at = f"{self.where}.slices.{name}"
            if name in self.on_host:
                names = [_full(name, part) for part in self.on_host[name]]
                masks = {full: jnp.zeros((), bool) if members is None else members[full] for full in names}
            else:
                parts = _traced(function, self.first, examples, at)
                masks = {_full(name, part): mask for part, mask in parts.items()}
            if taken := found.keys() & masks.keys():
                raise TaskError(f"{at}: two slices are named {min(taken)!r}. Rename one of them.")
            found |= masks
        return found


NO_SLICES = Slices()


def _full(name: str, part: str) -> str:
    return f"{name}/{part}" if part else name


class _Text:
    """Stands for text while a function is traced. Every use of it fails, so that the function is called on the host."""

    def _fail(self, *arguments: object) -> Any:
        raise TypeError("text stays on the host")

    __class__ = property(_fail)  # pyright: ignore[reportIncompatibleMethodOverride], isinstance reads it
    __getattr__ = __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __add__ = __radd__ = __mod__ = _fail
    __hash__ = __bool__ = __len__ = __iter__ = __contains__ = __getitem__ = __str__ = __repr__ = __format__ = _fail


def _is_traceable(function: SliceFunction, first: PyTree) -> bool:
    """Returns whether JAX can trace a function of an example, given as a host batch that may hold text."""
    try:
        jax.eval_shape(lambda numbers: _traced(function, first, numbers, ""), without_text(first))
    except Exception:  # also an error of the function: the call on the host shows it with real values
        return False
    return True


def _traced(function: SliceFunction, first: PyTree, examples: PyTree, where: str) -> dict[str, jax.Array]:
    """Returns part -> bool `[batch]`; to be traced. The function sees the entries with text, but cannot use the text.

    Args:
        function: function of one example.
        first: a host batch with its text.
        examples: pytree of arrays `[batch, ...]`, without text.
        where: config field of the slice, for error texts.
    """
    leaves, structure = jax.tree.flatten(first)

    def masks(numbers: PyTree) -> dict[str, Any]:
        rest = iter(jax.tree.leaves(numbers))
        example = jax.tree.unflatten(structure, [_Text() if is_text(leaf) else next(rest) for leaf in leaves])
        return {part: jnp.asarray(mask) for part, mask in _call(function, example, where, numbers).items()}

    return jax.vmap(masks)(examples)


def _on_host(function: SliceFunction, batch: Batch, parts: tuple[str, ...] | None, where: str) -> dict[str, np.ndarray]:
    """Returns part -> bool `[rows]`, False for rows of weight 0.

    Args:
        function: function of one example.
        batch: a host batch with its text.
        parts: what the function must return; None: what it returns for the first row.
        where: config field of the slice, for error texts.
    """
    leaves, structure = jax.tree.flatten(batch.examples)
    rows = np.flatnonzero(batch.weight).tolist()
    examples = [jax.tree.unflatten(structure, [leaf[row] for leaf in leaves]) for row in rows]
    found = [_call(function, example, where, example) for example in examples]
    parts = tuple(found[0]) if parts is None else parts
    masks = {part: np.zeros(len(batch.weight), bool) for part in parts}
    for row, values in zip(rows, found, strict=True):
        if values.keys() != masks.keys():
            raise TaskError(
                f"{where}: {_function_name(function)} returned {_list(values)} for an example, and {_list(masks)} for "
                "the first one. Return the same names for each example, with False for what it is not part of."
            )
        for part, value in values.items():
            masks[part][row] = value
    return masks


def _call(function: SliceFunction, example: PyTree, where: str, described: PyTree) -> dict[str, Any]:
    """Returns part -> bool of one example. Raises TaskError if the function fails, or returns something else.

    The error text lists the entries of `described`: those of the example that can be read.
    """
    with errors_described(f"{where}: {_function_name(function)}", example=described):
        result = function(example)
        named = {str(key): mask for key, mask in result.items()} if isinstance(result, Mapping) else {"": result}
    for part, mask in named.items():
        if getattr(mask, "shape", ()) != () or getattr(mask, "dtype", type(mask)) not in (bool, jnp.bool_):
            at = f" for {part!r}" if part else ""
            raise TaskError(
                f"{where} returned {describe_value(mask)}{at}. Return one True or False for the example, or a dict "
                "of them, name -> True or False."
            )
    return named


def _list(parts: Mapping[str, Any]) -> str:
    return ", ".join(repr(part) for part in parts if part) or ("one value" if parts else "nothing")


def _function_name(function: SliceFunction) -> str:
    """Returns the name of a function, such as "slices.darker_than"."""
    plain = function.func if isinstance(function, functools.partial) else function
    name = getattr(plain, "__qualname__", type(plain).__qualname__)
    return f"{getattr(plain, '__module__', '')}.{name}"
