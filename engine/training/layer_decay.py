"""Learning rates that decay with the depth of a layer (`optimizer.layer_decay`): ELECTRA (Clark et al. 2020,
arXiv:2003.10555) and BEiT (Bao et al. 2021, arXiv:2106.08254).

The rate of a parameter is multiplied by decay ** depth, where depth counts layers from the top: 0 for a head and a last
norm, 1 for the last numbered layer, and one more than the first layer for embeddings and a stem. Depths follow from the
paths, so a run that resumes computes the same ones.
"""

import math
import re
import string
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from engine.base.errors import FieldError
from engine.config.setting import HEAD
from engine.parallel.rules import STACKED

NUMBER = re.compile(r"((layer|stage|block)s?_?)?\d+")
"""A part of a path that numbers a layer: "0" of a list, or a name such as "layer1"."""
NESTED = re.compile(r"(layer|block)s?|(layer|stage|block)s?_?\d+")
"""Lists within a numbered layer whose elements are layers, too: the blocks of a stage."""
FIRST = re.compile(r"(embed|patch_|stem|cls|class_token|pos_|position|register|mask_token|token|conv1$|bn1$|wte|wpe)")
"""Beginning of the names of what comes before the first layer."""
SHOWN = 6  # parts of the model in a line
STACK = "layers"
"""Attribute of `engine.layers.Stack` that holds the layers."""


class _Place(NamedTuple):
    """Where a parameter stands in a tower: a sequence of layers that have one path before their first number."""

    tower: str
    numbers: tuple[int, ...]
    """Numbers in the path; a stack appends those of its layers."""
    stacked: int
    """Layers in the array of a stack; 0 for an array of one layer."""


def layer_scales(
    decays: Mapping[str, float | None],
    params: Mapping[str, jax.Array | jax.ShapeDtypeStruct],
    names: Mapping[str, Sequence[str | None]],
    roles: Mapping[str, str],
) -> tuple[dict[str, np.ndarray], str]:
    """Returns path -> float32 factor on the learning rate, and a table of the depths for `explain`.

    The factor of a stack of layers is a vector over its leading dimensions, `[layers, 1, ...]`.

    Args:
        decays: path -> decay per layer; None: the factor is 1.
        params: path -> array or shape of each trained parameter.
        names: path -> logical axes.
        roles: path -> role; empty for a run of an earlier version, which followed names only.

    Raises:
        FieldError: no path has a number, and no parameter is a stack of layers.
    """
    depths = layer_depths({path: params[path] for path, decay in decays.items() if decay is not None}, names, roles)
    scales = {path: np.ones((), np.float32) for path in params}
    for path, depth in depths.items():
        decay = decays[path]
        assert decay is not None
        scales[path] = np.power(decay, depth, dtype=np.float64).astype(np.float32)
    return scales, _table(depths, scales)


def layer_depths(
    params: Mapping[str, jax.Array | jax.ShapeDtypeStruct],
    names: Mapping[str, Sequence[str | None]],
    roles: Mapping[str, str],
) -> dict[str, np.ndarray]:
    """Returns path -> depth from the top; of a stack, one for each layer. Arguments and errors as `layer_scales`."""
    places = {
        path: place
        for path, x in params.items()
        if (place := _place(path, x.shape, names.get(path, ()), is_earlier=not roles))
    }
    if not places:
        problem = f"no trained parameter belongs to a numbered layer or a stack. Parameters: {', '.join(params)}"
        raise FieldError("optimizer.layer_decay", problem, "Use learning_rate_scale of groups instead.")
    towers: dict[str, list[tuple[int, ...]]] = {}
    for place in places.values():
        towers.setdefault(place.tower, []).extend(_layers(place))
    order = {tower: sorted(_whole(set(layers))) for tower, layers in towers.items()}
    depths = {}
    for path, x in params.items():
        if path not in places:
            depths[path] = np.asarray(_depth_outside(path, order, roles.get(path)))
            continue
        layers = order[places[path].tower]
        found = [len(layers) - _index(layers, layer) for layer in _layers(places[path])]
        if not places[path].stacked:
            depths[path] = np.asarray(found[0])
            continue
        fold = sum(name in STACKED for name in names[path])
        depths[path] = np.reshape(found, (*x.shape[:fold], *[1] * (len(x.shape) - fold)))
    return depths


def _place(path: str, shape: Sequence[int], names: Sequence[str | None], *, is_earlier: bool) -> _Place | None:
    """Returns the place of a parameter; None if it belongs to no numbered layer.

    Lists within the layers of a stack are no layers; earlier versions counted them.
    """
    parts = path.split("/")
    at = _numbered(parts)
    fold = sum(name in STACKED for name in names)
    if fold and STACK in parts and not is_earlier:
        at = [i for i in at if i < parts.index(STACK)]
    first = at[0] if at else 0
    if fold and not at:
        first = parts.index(STACK) if STACK in parts else 1
    if not (fold or at):
        return None
    numbers = tuple(int(parts[i].lstrip(string.ascii_letters + "_")) for i in at)
    return _Place("/".join(parts[:first]), numbers, math.prod(shape[:fold]) if fold else 0)


def _numbered(parts: Sequence[str]) -> list[int]:
    """Returns which parts of a path number a layer."""
    at: list[int] = []
    for i, part in enumerate(parts[:-1]):
        is_nested = i > 0 and NESTED.fullmatch(parts[i - 1]) is not None
        if NUMBER.fullmatch(part) and (not at or is_nested):
            at.append(i)
    return at


def _layers(place: _Place) -> list[tuple[int, ...]]:
    """Returns the numbers of each layer of which the array is a part."""
    return [(*place.numbers, i) for i in range(place.stacked)] if place.stacked else [place.numbers]


def _whole(layers: set[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Returns the layers without those that only hold others: what a stage has besides its blocks is no layer."""
    return [one for one in layers if not any(len(other) > len(one) and other[: len(one)] == one for other in layers)]


def _index(layers: Sequence[tuple[int, ...]], layer: tuple[int, ...]) -> int:
    """Returns the position of a layer; what a stage has besides its blocks belongs to its first block."""
    return next(i for i, one in enumerate(layers) if one[: len(layer)] == layer)


def _depth_outside(path: str, order: Mapping[str, Sequence[tuple[int, ...]]], role: str | None) -> int:
    """Returns the depth of a parameter of no numbered layer: below the first layer or above the last one."""
    if role == HEAD or not any(FIRST.match(part) for part in path.split("/")):
        return 0
    shared = {tower: _shared(path, tower) for tower in order}
    nearest = [tower for tower, count in shared.items() if count == max(shared.values())]
    return max(len(order[tower]) for tower in nearest) + 1


def _shared(path: str, tower: str) -> int:
    """Returns the number of parts with which both paths begin."""
    count = 0
    for one, other in zip(path.split("/"), tower.split("/"), strict=False):
        if one != other:
            break
        count += 1
    return count


def _table(depths: Mapping[str, np.ndarray], scales: Mapping[str, np.ndarray]) -> str:
    """Returns lines: depth, factor on the learning rate, and the parts of the model, the top first."""
    rows: dict[tuple[int, float], dict[str, None]] = {}
    for path, depth in depths.items():
        part, scale = _part(path, depth.ndim > 0), scales[path]
        for i, (one, factor) in enumerate(zip(depth.flat, scale.flat, strict=True)):
            rows.setdefault((int(one), float(factor)), {})[f"{part}[{i}]" if depth.ndim else part] = None
    lines = ["layer_decay: depth, factor on the learning rate, parts of the model"]
    for (depth, factor), parts in sorted(rows.items()):
        more = f" and {len(parts) - SHOWN} more" if len(parts) > SHOWN else ""
        lines.append(f"  {depth:5}  {factor:<9.4g}  {', '.join([*parts][:SHOWN])}{more}")
    return "\n".join(lines)


def _part(path: str, stacked: bool) -> str:
    """Returns what a table calls the layer of a parameter, or the module of one outside of the layers."""
    parts = path.split("/")
    if stacked and STACK in parts:
        return "/".join(parts[: parts.index(STACK) + 1])
    if at := _numbered(parts):
        return "/".join(parts[: at[-1] + 1])
    return "/".join(parts[:-1] if parts[-1] in ("kernel", "bias", "scale", "embedding") else parts)
