"""Operations of `engine.perception` and their gradients, compared with PyTorch and torchvision on a CPU."""

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.references.environment import Environment
from benchmarks.references.file_exchange import compare_files, exchanged
from benchmarks.references.rows import Row
from engine import perception

TOLERANCE = 1e-4  # of sums of up to 100 products of float32
CELLS = 10
SHAPE, COARSE = (4, 6, 5), (2, 3, 3)


def _kept(boxes: Any, scores: Any, labels: Any) -> Any:
    labels = None if labels is None else labels[None]
    found = perception.nms(boxes[None], scores[None], len(boxes), threshold=0.4, labels=labels)
    return jnp.where(found.valid, found.indices, -1)[0]


def _grid(index: Any, features: Any) -> perception.SparseGrid:
    return perception.SparseGrid(jnp.asarray(index), features, SHAPE)


def _strided(index: Any, features: Any, kernel: Any, stride: int, padding: int) -> Any:
    cells = math.prod(SHAPE)
    grid, _ = perception.strided_conv(_grid(index, features), kernel, stride=stride, padding=padding, capacity=cells)
    return grid.dense()


def _module(queries: Any, references: Any, level0: Any, level1: Any, **layers: Any) -> Any:
    module = perception.DeformableAttention(queries.shape[-1], heads=2, levels=2, points=3, rngs=nnx.Rngs(0))
    for name, x in layers.items():
        layer, _, part = name.partition("_")
        getattr(getattr(module, layer), part).set_value(x)
    return module(queries, references, [level0, level1])


COMPARISONS: dict[str, Callable[..., Any]] = {
    **{
        f"grid_sample {mode} {padding} {corners}": functools.partial(
            perception.grid_sample, mode=mode, padding=padding, align_corners=corners
        )
        for mode in ("bilinear", "nearest")
        for padding in ("zeros", "border", "reflection")
        for corners in (False, True)
    },
    "box_iou": lambda boxes, scores, labels: perception.box_iou(boxes[:, None], boxes[None]),
    "nms": lambda boxes, scores, labels: _kept(boxes, scores, None),
    "nms of classes": _kept,
    "scatter sum": functools.partial(perception.scatter_sum, cells=CELLS),
    "scatter mean": functools.partial(perception.scatter_mean, cells=CELLS),
    "scatter amax": functools.partial(perception.scatter_max, cells=CELLS),
    "lift_splat": functools.partial(perception.lift_splat, cells=CELLS),
    "deformable": lambda level0, level1, points, weights: perception.deformable_attention(
        [level0, level1], points, weights
    ),
    "module of deformable attention": _module,
    "chamfer": perception.chamfer_distance,
    "submanifold": lambda index, features, kernel: perception.submanifold_conv(_grid(index, features), kernel).dense(),
    "strided 3/2": lambda **inputs: _strided(**inputs, stride=2, padding=1),
    "strided 2/2": lambda **inputs: _strided(**inputs, stride=2, padding=0),
    "inverse": lambda coarse, features, kernel, fine: perception.inverse_conv(
        perception.SparseGrid(coarse, features, COARSE), kernel, _grid(fine, fine[..., None]), stride=2, padding=1
    ).dense(),
}
"""Item -> the function of the engine with the same inputs."""


def compare(environment: Environment, cases: int) -> Iterator[Row]:
    """Yields a row for the value of each operation, and one for its gradients."""
    yield from compare_files(environment, {"sets": list(range(cases))}, compared, 1)


def compared(folder: Path, start: str = "") -> Iterator[Row]:
    """Yields the rows of a folder in which PyTorch has written inputs, values and gradients.

    Args:
        folder: the folder.
        start: only items that begin with this text are compared.
    """
    seeds, items = exchanged(folder)
    with np.load(folder / "perception.npz") as stored:
        for item in (item for item in items if item.startswith(start)):
            run, differences = _compiled(COMPARISONS[item]), []
            for seed in seeds:
                key = f"{seed} {item}/"
                parts = {name.removeprefix(key): stored[name] for name in stored if name.startswith(key)}
                differences.append(_differences(run, parts))
            value, gradient = (max(pair) for pair in zip(*differences, strict=True))
            yield Row(item, len(seeds), value, TOLERANCE)
            if f"{seeds[0]} {item}/weights" in stored:
                yield Row(f"{item}, gradient", len(seeds), gradient, TOLERANCE)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a compiled function of inputs by name, and of weights, that returns the value and gradients of floats.

    An operation without a gradient has no weights.
    """

    def run(inputs: dict[str, Any], weights: Any = None) -> Any:
        if weights is None:
            return function(**inputs), {}
        floats = {name: x for name, x in inputs.items() if jnp.issubdtype(x.dtype, jnp.floating)}

        def total(floats: dict[str, Any]) -> Any:
            value = function(**{**inputs, **floats})
            return (value * weights).sum(), value

        gradients, value = jax.grad(total, has_aux=True)(floats)
        return value, gradients

    return jax.jit(run)


def _differences(run: Callable[..., Any], parts: dict[str, np.ndarray]) -> tuple[float, float]:
    inputs = {name.removeprefix("in/"): x for name, x in parts.items() if name.startswith("in/")}
    value, gradients = run(inputs, parts.get("weights"))
    largest = max((_largest(x, parts[f"gradient/{name}"]) for name, x in gradients.items()), default=0.0)
    return _largest(value, parts["value"]), largest


def _largest(found: Any, wanted: np.ndarray) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    return float(np.abs(np.asarray(found, np.float64) - wanted).max(initial=0))
