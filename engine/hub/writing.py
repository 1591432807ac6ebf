"""Writes a module as a safetensors file with the names of another program: the reverse of `engine.hub.load`."""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from flax import nnx

from engine.base.errors import CheckpointError
from engine.checkpoint.export import write_safetensors
from engine.hub.matching import Array, arrays_of, variables_of
from engine.hub.names import Piece
from engine.hub.weights import Stored, Weights


def save(module: nnx.Module, path: str | os.PathLike[str], like: str | os.PathLike[str] | None = None) -> list[str]:
    """Writes the variables of a module, with the names and shapes that they have in another program.

    What `load` has read, it writes back bit for bit, in the dtypes of the module. An existing file is replaced
    atomically. For one process: all values are on this host.

    Args:
        module: whose modules may state the names of their arrays in `pretrained`, such as `engine.load(run).model`.
        path: the file.
        like: a safetensors file or a folder of the other program. Names and shapes must be those of its arrays. It is
            needed where an array here joins several there, whose sizes it tells.

    Returns:
        The names of the arrays.

    Raises:
        CheckpointError: the file cannot be written, a part of an array there is missing here, or `like` has other
            names or shapes.
    """
    weights = None if like is None else Weights(Path(like), "save")
    stored = {} if weights is None else weights.arrays
    variables = variables_of(module)
    specs = {name: variable.get_value() for name, variable in variables.items()}
    parts: dict[str, dict[Piece, np.ndarray]] = {}
    for array in arrays_of(specs, module, {}, stored):
        for piece, value in _pieces(array, np.asarray(specs[array.path]), stored):
            parts.setdefault(piece.name, {})[piece] = value
    whole = {name: _whole(name, found) for name, found in parts.items()}
    if weights is not None:
        _check(whole, stored, weights.path)
    write_safetensors(whole, Path(path), {"format": "pt"})
    return sorted(whole)


def _pieces(array: Array, value: np.ndarray, stored: Mapping[str, Stored]) -> Iterator[tuple[Piece, np.ndarray]]:
    """Yields the pieces of an array with their values, in the order of dimensions that they have there."""
    layers = value.reshape(math.prod(array.leading), *array.shape)
    if not array.origin.is_stacked and len(layers) > 1:
        raise CheckpointError(f"save: {array.path}: has {len(layers)} layers, and one array there: {array.origin}.")
    for layer, x in enumerate(layers):
        there = array.origin.array_there(x) if array.shape else x
        pieces = array.origin.of_layer(layer)
        if len(pieces) == 1:
            yield pieces[0], there
            continue
        if missing := [piece.name for piece in pieces if piece.name not in stored]:
            raise CheckpointError(
                f"save: {array.path}: joins {', '.join(map(str, pieces))}, and the size of {missing[0]} is unknown. "
                "Give `like`, weights of the other program that have it."
            )
        ends = np.cumsum([stored[piece.name].shape[0] // piece.count for piece in pieces])
        yield from zip(pieces, np.split(there, ends[:-1]), strict=True)


def _whole(name: str, parts: Mapping[Piece, np.ndarray]) -> np.ndarray:
    count = next(iter(parts)).count
    found = {piece.part: value for piece, value in parts.items()}
    if missing := set(range(count)) - found.keys():
        raise CheckpointError(f"save: {name}: part {min(missing)} of {count} is in no array of the module.")
    whole = np.concatenate([found[part] for part in range(count)]) if count > 1 else found[0]
    return np.asarray(whole, order="C")  # unlike ascontiguousarray, it keeps scalars


def _check(whole: Mapping[str, np.ndarray], stored: Mapping[str, Stored], path: Path) -> None:
    shapes = {name: one.shape for name, one in stored.items()}
    wrong = [f"{name} {list(x.shape)}" for name, x in whole.items() if shapes.get(name) != x.shape]
    if wrong:
        raise CheckpointError(
            f"save: {path} has no arrays {', '.join(sorted(wrong)[:8])}. Save the part of the model that was loaded."
        )
