"""Matches the arrays of a model with those of another program's weights, by the tables of names of its modules."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from engine.base.errors import ConfigError, near_names
from engine.checkpoint import paths_of_init
from engine.hub.names import ATTRIBUTE, LAYER, Names, Origin, Piece, parse
from engine.hub.weights import Stored, Weights
from engine.parallel.rules import STACKED

COUNTERS = (".num_batches_tracked",)
"""Ends of names there that no model needs."""
FLOATS = ("F", "BF")
"""Beginnings of the types of floats in a safetensors file."""


@dataclasses.dataclass(frozen=True)
class Array:
    """An array here: its path, its dimensions of layers and of one layer, and its origin."""

    path: str
    leading: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    origin: Origin
    is_head: bool

    def pieces(self) -> Iterator[Piece]:
        """Yields the pieces of all layers."""
        layers = range(math.prod(self.leading)) if self.origin.is_stacked else (0,)
        return itertools.chain.from_iterable(map(self.origin.of_layer, layers))


def variables_of(module: nnx.Module) -> dict[str, nnx.Variable]:
    """Returns path -> variable of the parameters and batch statistics of a module."""
    state = nnx.state(module, (nnx.Param, nnx.BatchStat))
    return {"/".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


def arrays_of(
    specs: Mapping[str, jax.ShapeDtypeStruct],
    module: nnx.Module,
    paths: Mapping[str, str | None],
    stored: Mapping[str, Stored],
) -> Iterator[Array]:
    """Yields the arrays here that are read, with their origins."""
    tables, stacked, is_own = _tables(module), stacked_of(module), any("/" in name for name in stored)
    of_table: dict[str, list[tuple[Array, str]]] = {owner: [] for owner in tables}
    for name, spec in specs.items():
        to = paths_of_init.translate(name, paths)
        if to is None:
            continue
        owner = max((one for one in tables if not one or name.startswith(f"{one}/")), key=len)
        path, count = name.removeprefix(f"{owner}/") if owner else name, stacked.get(name, 0)
        leading, shape = spec.shape[:count], spec.shape[count:]
        origin = tables[owner].origin(path, len(shape))
        array = Array(name, leading, shape, spec.dtype, origin, tables[owner].is_head(path))
        if is_own and to in stored:  # the file has paths of this engine
            whole = Origin((Piece(to),), tuple(range(len(spec.shape))))
            yield dataclasses.replace(array, leading=(), shape=spec.shape, origin=whole)
        elif to == path or to.endswith(f"/{path}"):
            of_table[owner].append((array, to.removesuffix(path).replace("/", ".")))
        else:  # the user gives the name there
            given = dataclasses.replace(origin, pieces=(Piece(to),)) if to in stored else _given(to, name, origin)
            yield dataclasses.replace(array, origin=given)
    for owner, found in of_table.items():
        yield from _with_prefix(found, tables[owner].prefixes, stored)


def _given(text: str, path: str, origin: Origin) -> Origin:
    """Returns the origin that an entry of `paths` names; dimensions have the order of the table without their own."""
    found = parse(text.replace("/", "."), path, len(origin.order), where="paths")
    return found if ":" in text else dataclasses.replace(origin, pieces=found.pieces)


def _tables(module: nnx.Module) -> dict[str, Names]:
    """Returns path of a module -> its table of names; the whole model has an empty one if it states none."""
    found = {"": Names()}
    for path, part in nnx.iter_modules(module):
        if isinstance(names := getattr(part, ATTRIBUTE, None), Names):
            found["/".join(map(str, path))] = names
    return found


def stacked_of(module: nnx.Module) -> dict[str, int]:
    """Returns path of each variable of stacked layers -> number of leading dimensions that index the layers."""
    variables = nnx.to_flat_state(nnx.state(module))
    axes = {"/".join(map(str, key)): v.get_metadata().get("logical_axes") or () for key, v in variables}
    return {path: sum(axis in STACKED for axis in names) for path, names in axes.items()}


def _with_prefix(
    found: Sequence[tuple[Array, str]], prefixes: Sequence[str], stored: Mapping[str, Stored]
) -> Iterator[Array]:
    """Yields the arrays of a module with the prefix of their names there: the one that most of them have there."""

    def prefixed(start: str) -> list[Array]:
        return [dataclasses.replace(array, origin=_prefixed(array.origin, start + prefix)) for array, prefix in found]

    candidates = [prefixed(start) for start in prefixes or ("",)]
    yield from max(candidates, key=lambda arrays: sum(_fits(array, stored) for array in arrays))


def _prefixed(origin: Origin, prefix: str) -> Origin:
    pieces = tuple(Piece(prefix + piece.name, piece.part, piece.count) for piece in origin.pieces)
    return dataclasses.replace(origin, pieces=pieces)


def _fits(array: Array, stored: Mapping[str, Stored]) -> bool:
    return all(piece.name in stored for piece in array.pieces())


def difference(array: Array, stored: Mapping[str, Stored]) -> str:
    """Returns what keeps an array from being read, with the nearest name; "" if nothing does."""
    if missing := next((piece.name for piece in array.pieces() if piece.name not in stored), None):
        same = [name for name, one in stored.items() if sorted(one.shape) == sorted(array.shape)]
        near = near_names(missing, same or list(stored))
        return f"here {list(array.shape)}, there no {missing}" + (f" (there is {', '.join(near)})" if near else "")
    there = array.origin.there(array.shape, 1)
    layers = range(math.prod(array.leading)) if array.origin.is_stacked else (0,)
    for layer in layers:
        pieces = array.origin.of_layer(layer)
        shapes = [part_shape(stored[piece.name], piece) for piece in pieces]
        whole = (sum(shape[0] for shape in shapes), *shapes[0][1:]) if all(shapes) else ()
        if list(whole) != there or any(shape[1:] != shapes[0][1:] for shape in shapes):
            names = ", ".join(f"{piece} {stored[piece.name]}" for piece in pieces)
            return f"here {list(array.shape)}, which is {there} there, but there is {names}"
        floats = jnp.issubdtype(array.dtype, jnp.floating)
        if wrong := [one for p in pieces if (one := stored[p.name]).dtype.startswith(FLOATS) != floats]:
            return f"here {array.dtype}, there {pieces[0].name} {wrong[0]}"
    return ""


def advice(arrays: Iterable[Array], module: nnx.Module, stored: Mapping[str, Stored]) -> str:
    """Returns a sentence where the weights are those of a module with a table, and not of the whole model."""
    pieces = [piece.name for array in arrays for piece in array.pieces()]
    for owner in filter(None, _tables(module)):
        start = owner.replace("/", ".") + "."
        inside = [name.removeprefix(start) for name in pieces if name.startswith(start)]
        if 2 * sum(name in stored for name in inside) > len(inside):
            return f"\nThe checkpoint has the arrays of {owner}/ without this prefix: map it with {{{owner!r}: ''}}."
    return ""


def part_shape(stored: Stored, piece: Piece) -> tuple[int, ...]:
    """Returns the shape of a piece; with a first dimension of -1 if it does not divide into its parts."""
    if piece.count == 1:
        return stored.shape
    rows = stored.shape[0] if stored.shape else 0
    return (rows // piece.count if rows % piece.count == 0 else -1, *stored.shape[1:])


def unused(arrays: Iterable[Array], weights: Weights) -> list[str]:
    """Returns the arrays there that no array here uses."""
    used = {piece.name for array in arrays for piece in array.pieces()}
    left = (name for name in weights.arrays if name not in used and not name.endswith(COUNTERS))
    return sorted(f"{name} {weights.arrays[name]}" for name in left)


def more_layers(arrays: Iterable[Array], stored: Mapping[str, Stored]) -> list[str]:
    """Returns a warning for each stack of layers that has more layers there than here."""
    found: dict[str, str] = {}
    for array in arrays:
        here = math.prod(array.leading)
        for name in (piece.name for piece in array.origin.pieces if LAYER in piece.name):
            pattern = re.compile(re.escape(name).replace(re.escape(LAYER), r"(\d+)"))
            numbers = [int(match[1]) for match in map(pattern.fullmatch, stored) if match]
            if (there := 1 + max(numbers, default=-1)) > here:
                stack = name[: name.index(LAYER) + len(LAYER)]
                found[stack] = f"warning: {stack} has {there} layers there and {here} here; the last are left out"
    return list(found.values())


def part_of(module: nnx.Module, path: str, where: str) -> nnx.Module:
    """Returns the module at a path such as "backbone" or "camera/net" of another one.

    Raises:
        ConfigError: there is no such module; the text begins with `where`.
    """
    found: Any = module
    for word in path.strip("/").split("/"):
        parts = {name: one for name, one in vars(found).items() if isinstance(one, nnx.Module)}
        if word not in parts:
            raise ConfigError(f"{where} = {path}: no module {word!r}. Modules there: {', '.join(parts) or 'none'}.")
        found = parts[word]
    return found
