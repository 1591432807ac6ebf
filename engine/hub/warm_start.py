"""Initializes a new run with weights that another program wrote: `init.checkpoint="hf:FOLDER"`.

Each device reads its own part of each array. A process never holds more than the parts of its devices and one array.
"""

import hashlib
import itertools
import os
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from flax import nnx

from engine.base.errors import CheckpointError
from engine.base.types import PyTree
from engine.checkpoint.tree_compat import SHOWN
from engine.checkpoint.warm_start import FOREIGN, SECTIONS, RestoredWeights, listed
from engine.config.schema import InitSource
from engine.hub.download import locate, locate_everywhere
from engine.hub.matching import Array, advice, arrays_of, difference, more_layers, part_shape, unused, variables_of
from engine.hub.weights import Weights
from engine.run.lineage import CHECKPOINT, Input


def read_source(
    source: InitSource, where: str, abstract_state: Mapping[str, PyTree], module: nnx.Module
) -> RestoredWeights:
    """Returns the weights of a folder of safetensors files for the arrays of `abstract_state`. Every process calls it.

    Args:
        source: a section of the config whose checkpoint begins with "hf:"; `where` is its path.
        abstract_state: a part of the state of this run, as jax.ShapeDtypeStruct with shardings.
        module: the model of this run, whose modules may state the names of their arrays in `pretrained`.

    Raises:
        CheckpointError: the files are missing or damaged, or an array here has no match there.
    """
    found = locate_everywhere(source.checkpoint.removeprefix(FOREIGN), f"{where}.checkpoint")
    weights = Weights(found.path, f"{where}.checkpoint", found.name)
    specs = {name: spec for section in SECTIONS for name, spec in abstract_state[section].items()}
    read, message = _matched(weights, specs, module, source.paths, f"{where}.checkpoint", f"{where}.paths")
    of = {section: {name: read[name] for name in abstract_state[section] if name in read} for section in SECTIONS}
    name = found.name if found.name.startswith(FOREIGN) else str(found.path.absolute())
    one = Input(kind=CHECKPOINT, role=where, path=name, id=_digest(weights))
    return RestoredWeights(of["params"], of["carried"], message, (one,))


def load(module: nnx.Module, path: str | os.PathLike[str], paths: Mapping[str, str | None] | None = None) -> str:
    """Sets the variables of a module to the weights of safetensors files; returns a sentence about them.

    Variables keep their dtypes and shardings. A run does the same with `init.checkpoint="hf:FOLDER"`.

    Args:
        module: whose modules may state the names of their arrays in `pretrained`.
        path: a safetensors file, a folder with model.safetensors or with an index and its files, or OWNER/NAME on
            Hugging Face.
        paths: as `init.paths`: prefix here -> prefix there, or None for variables that keep their values.

    Raises:
        CheckpointError: the files are missing or damaged, or a variable has no match there.
    """
    found = locate(os.fspath(path).removeprefix(FOREIGN), "load")
    read, message = read_arrays(module, Weights(found.path, "load", found.name), paths or {}, "load", "paths")
    variables = variables_of(module)
    for name, value in read.items():
        variables[name].set_value(value)
    return message


def read_arrays(
    module: nnx.Module, weights: Weights, paths: Mapping[str, str | None], where: str, setting: str, only: str = ""
) -> tuple[dict[str, jax.Array], str]:
    """Returns path -> value of each variable of a module that the weights have, and a sentence about them.

    `only` is the path of one variable; "" for all.

    Raises:
        CheckpointError: as for `load`; `where` names the caller, and `setting` the paths.
    """
    specs = {name: _spec(variable.get_value()) for name, variable in variables_of(module).items()}
    specs = {only: specs[only]} if only else specs
    return _matched(weights, specs, module, paths, where, setting)


def _spec(value: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=value.sharding)


def _matched(
    weights: Weights,
    specs: Mapping[str, jax.ShapeDtypeStruct],
    module: nnx.Module,
    paths: Mapping[str, str | None],
    where: str,
    setting: str,
) -> tuple[dict[str, jax.Array], str]:
    """Returns path -> array read, and a sentence about them; raises CheckpointError where an array has no match.

    In errors, `where` names the weights, and `setting` the paths.
    """
    arrays = {array.path: array for array in arrays_of(specs, module, paths, weights.arrays)}
    wrong = {name: text for name, array in arrays.items() if (text := difference(array, weights.arrays))}
    if lines := [f"{name}: {text}" for name, text in wrong.items() if not arrays[name].is_head]:
        raise CheckpointError(
            f"{where}: {weights.name} does not fit this model:\n  "
            + "\n  ".join(lines[:SHOWN] + ([f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []))
            + f"\n{len(lines)} of {len(arrays)} arrays here. Only there: {listed(unused(arrays.values(), weights))}."
            f"\nMap them with {setting}, prefix here -> prefix there, or None to leave them random, such as "
            f"{{'head': None}}.{advice(arrays.values(), module, weights.arrays)}"
        )
    read = {name: _read(weights, array, specs[name]) for name, array in arrays.items() if name not in wrong}
    random = [f"{name} ({wrong[name]})" if name in wrong else name for name in specs if name not in read]
    left = unused((arrays[name] for name in read), weights)
    message = f"initialized {len(read)} arrays from {weights.name}; random: {listed(random)}; unused: {listed(left)}"
    return read, "; ".join([message, *more_layers((arrays[name] for name in read), weights.arrays)])


def _read(weights: Weights, array: Array, spec: jax.ShapeDtypeStruct) -> jax.Array:
    """Returns an array on its devices, each of which reads its part; parts that several devices have are read once."""
    parts: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        bounds = tuple(s.indices(size)[:2] for s, size in zip(index or (), spec.shape, strict=True))
        if bounds not in parts:
            parts[bounds] = _part(weights, array, bounds).astype(spec.dtype)
        return parts[bounds]

    return jax.make_array_from_callback(spec.shape, spec.sharding, part)


def _part(weights: Weights, array: Array, bounds: Sequence[tuple[int, int]]) -> np.ndarray:
    """Returns the part of an array within `bounds`, a start and a stop for each dimension."""
    count = len(array.leading)
    there = array.origin.there(bounds[count:], (0, 1))
    layers = itertools.product(*(range(*bound) for bound in bounds[:count]))
    found = [_of_layer(weights, array, int(np.ravel_multi_index(i, array.leading)) if i else 0, there) for i in layers]
    shape = [stop - start for start, stop in bounds]
    return np.stack(found).reshape(shape) if count else found[0].reshape(shape)


def _of_layer(weights: Weights, array: Array, layer: int, bounds: Sequence[tuple[int, int]]) -> np.ndarray:
    """Returns the part of one layer; `bounds` are those of the dimensions there."""
    if not bounds:
        return weights.read(array.origin.of_layer(layer)[0].name, ())
    (start, stop), *rest = bounds
    others, found, first = [slice(*bound) for bound in rest], [], 0
    for piece in array.origin.of_layer(layer):
        rows = part_shape(weights.arrays[piece.name], piece)[0]
        low, high = max(start, first), min(stop, first + rows)
        if low < high:
            offset = piece.part * rows - first
            found.append(weights.read(piece.name, [slice(low + offset, high + offset), *others]))
        first += rows
    return array.origin.array_here(np.concatenate(found))


def _digest(weights: Weights) -> str:
    """Returns a hash of the names, shapes and types of all arrays and the sizes of their files."""
    text = [f"{name} {one} {one.file.name} {one.file.stat().st_size}" for name, one in sorted(weights.arrays.items())]
    return hashlib.sha256("\n".join(text).encode()).hexdigest()[:16]
