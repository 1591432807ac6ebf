"""The operations of `engine.perception` that `benchmarks.perception` measures, each with inputs of two sizes.

Inputs are functions of a random key: a program for absent devices needs their shapes alone, which `jax.eval_shape`
gives. `benchmarks/perception_obvious.py` has the obvious ways and the loops in numpy.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks import perception_obvious as obvious
from engine import perception


@dataclasses.dataclass(frozen=True)
class Case:
    """An operation, other ways to compute the same, and inputs.

    Attributes:
        run: the operation.
        obvious: the obvious way in JAX; None if it is the operation itself.
        inputs: random key -> the inputs of both.
        size: the sizes of the inputs of an example, as text.
        golden: start of the names of its golden items; "" has none.
        differentiable: number of the first inputs of which gradients are computed.
        shared: places of inputs without a batch, such as kernels, whose gradient is summed over devices.
        host: the value in numpy or SciPy, of the same inputs.
    """

    run: Callable[..., Any]
    obvious: Callable[..., Any] | None
    inputs: Callable[[jax.Array], tuple[Any, ...]]
    size: str
    golden: str = ""
    differentiable: int = 0
    shared: tuple[int, ...] = ()
    host: Callable[..., Any] | None = None


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the inputs of one example. The defaults are those of a small model.

    Attributes:
        grid: cells along each side of a bird's-eye view.
        points: points of a sweep.
        cells: capacity for occupied cells.
        width: features.
        boxes: boxes before suppression.
        objects: objects of a frame, at most.
        pixels: patches of all cameras.
        depths: depths of a patch.
        queries: queries of a decoder.
        maps: sides of the feature maps that deformable attention reads.
        voxels: sides of the sparse grid.
        sites: sites of the sparse grid, at most.
        cloud: points of each of two compared clouds.
        lines: polylines of a scene.
    """

    grid: int = 128
    points: int = 20000
    cells: int = 4000
    width: int = 32
    boxes: int = 256
    objects: int = 64
    pixels: int = 1500
    depths: int = 40
    queries: int = 300
    maps: tuple[int, ...] = (48, 24, 12)
    voxels: tuple[int, int, int] = (8, 48, 48)
    sites: int = 1500
    cloud: int = 1000
    lines: int = 128


SMALL = Sizes()
REAL = Sizes(
    grid=128, points=60000, cells=20000, width=64, boxes=1000, objects=200, pixels=4224, depths=59, queries=900,
    maps=(100, 50, 25, 13), voxels=(20, 400, 400), sites=40000, cloud=2048, lines=768,
)  # fmt: skip
"""Sizes of published models on nuScenes: ten sweeps, six cameras of 256 x 704 with a stride of 16, 900 queries."""


def cases(sizes: Sizes, batch: int) -> dict[str, Case]:
    """Returns the operations by name."""
    return {**_points(sizes, batch), **_boxes(sizes, batch), **_maps(sizes, batch), **_sparse(sizes, batch)}


def _normal(key: jax.Array, *shape: int) -> jax.Array:
    return jax.random.normal(key, shape)


def _points(s: Sizes, batch: int) -> dict[str, Case]:
    """Returns the operations on points and polylines."""
    grid = s.grid**2
    to_cells, to_grid = {"cells": s.cells}, {"cells": grid}
    index = lambda key, cells: jax.random.randint(key, (batch, s.points), 0, cells + 100)  # noqa: E731
    values = lambda key: (_normal(key, batch, s.points, s.width), index(key, s.cells))  # noqa: E731
    clouds = lambda key: tuple(_normal(k, batch, s.cloud, 3) for k in jax.random.split(key))  # noqa: E731
    encoder = nnx.eval_shape(lambda: perception.PolylineEncoder(9, 2 * s.width, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(encoder)

    def encode(weights: Any, points: Any, valid: Any) -> Any:
        return nnx.merge(graph, weights)(points, valid)

    def polylines(key: jax.Array) -> tuple[Any, ...]:
        weights = jax.tree.map(lambda x: 1 / 8 + _normal(key, *x.shape) / 4, state)
        count = jax.random.randint(key, (batch, s.lines, 1), 1, 21)
        return weights, _normal(key, batch, s.lines, 20, 9), jnp.arange(20) < count

    size = f"{s.points:,} points x {s.width} to {s.cells:,} cells"
    ours = {name: functools.partial(getattr(perception, name), **to_cells) for name in _SCATTERS}
    theirs = {name: functools.partial(way, **to_cells) for name, (way, _) in _SCATTERS.items()}
    return {
        "occupied_cells": Case(
            functools.partial(perception.occupied_cells, cells=grid, capacity=s.cells), None,
            lambda key: (index(key, grid),), f"{s.points:,} points in {grid:,} cells",
            host=functools.partial(obvious.occupied, cells=grid, capacity=s.cells),
        ),
        "first_points": Case(
            functools.partial(perception.first_points, count=20, **to_cells), None, lambda key: (index(key, s.cells),),
            f"20 of {s.points:,} points in {s.cells:,} cells",
            host=functools.partial(obvious.first_points, count=20, **to_cells),
        ),
        **{
            name: Case(ours[name], theirs[name], values, size, golden, 1)
            for name, (_, golden) in _SCATTERS.items()
        },
        "lift_splat": Case(
            functools.partial(perception.lift_splat, **to_grid), functools.partial(obvious.lifted, **to_grid),
            lambda key: (
                _normal(key, batch, s.pixels, s.width), jax.random.uniform(key, (batch, s.pixels, s.depths)),
                jax.random.randint(key, (batch, s.pixels, s.depths), 0, grid),
            ),
            f"{s.pixels:,} pixels x {s.depths} x {s.width} to {grid:,} cells", "lift_splat", 2,
        ),
        "chamfer_distance": Case(
            perception.chamfer_distance, obvious.nearest, clouds, f"{s.cloud:,} and {s.cloud:,} points", "chamfer", 2
        ),
        "PolylineEncoder": Case(
            encode, functools.partial(obvious.encoded, graph), polylines, f"{s.lines} of 20 points x {2 * s.width}",
            differentiable=2, shared=(0,),
        ),
    }  # fmt: skip


_SCATTERS: dict[str, tuple[Callable[..., Any], str]] = {
    "scatter_sum": (obvious.sorted_sum, "scatter sum"),
    "scatter_mean": (obvious.sorted_mean, "scatter mean"),
    "scatter_max": (obvious.largest, "scatter amax"),
}


def _boxes(s: Sizes, batch: int) -> dict[str, Case]:
    """Returns the operations on boxes: overlap, suppression and matching."""

    def turned(key: jax.Array, count: int = s.boxes) -> jax.Array:
        places, sides, angle = jax.random.split(key, 3)
        return jnp.concatenate(
            [
                jax.random.uniform(places, (batch, count, 2), maxval=30),
                jax.random.uniform(sides, (batch, count, 2), minval=1, maxval=5),
                jax.random.uniform(angle, (batch, count, 1), minval=-3, maxval=3),
            ],
            -1,
        )

    def flat(key: jax.Array, count: int = s.boxes) -> jax.Array:
        boxes = turned(key, count)
        return jnp.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:4]], -1)

    def scores(key: jax.Array, *more: Any) -> tuple[Any, ...]:
        return *more, -jnp.sort(-jax.random.uniform(key, (batch, s.boxes)))

    def pairs(boxes: Callable[..., jax.Array]) -> Callable[[jax.Array], tuple[Any, ...]]:
        def make(key: jax.Array) -> tuple[Any, ...]:
            one, two = jax.random.split(key)
            return boxes(one)[:, :, None], boxes(two, s.objects)[:, None]

        return make

    def kept(found: perception.Kept) -> jax.Array:
        return jnp.zeros((batch, s.boxes)).at[jnp.arange(batch)[:, None], found.indices].max(found.valid)

    table, many = f"{s.boxes} x {s.objects} boxes", f"{s.boxes} boxes"
    return {
        "box_iou": Case(perception.box_iou, None, pairs(flat), table, "box_iou", 2),
        "rotated_iou": Case(perception.rotated_iou, obvious.polygon_iou, pairs(turned), table, "", 2),
        "nms": Case(
            lambda boxes, scores: kept(perception.nms(boxes, scores, s.boxes, threshold=0.3)),
            lambda boxes, scores: obvious.greedy(perception.box_iou(boxes[:, :, None], boxes[:, None]) > 0.3) * 1.0,
            lambda key: scores(key, flat(key)), many, "nms",
        ),
        "rotated_nms": Case(
            lambda boxes, scores: kept(perception.nms(boxes, scores, s.boxes, threshold=0.3)),
            lambda boxes, scores: obvious.greedy(obvious.polygon_iou(boxes[:, :, None], boxes[:, None]) > 0.3) * 1.0,
            lambda key: scores(key, turned(key)), many,
        ),
        "circle_nms": Case(
            lambda places, scores: kept(perception.circle_nms(places, scores, s.boxes, radius=2.0)),
            lambda places, scores: obvious.greedy(
                ((places[:, :, None] - places[:, None]) ** 2).sum(-1) <= 4
            ) * 1.0,
            lambda key: scores(key, turned(key)[..., :2]), many,
        ),
        "soft_nms": Case(
            lambda boxes, scores: perception.soft_nms(boxes, scores, 80).scores, None,
            lambda key: scores(key, flat(key)), f"80 of {many}",
            host=functools.partial(obvious.soft, count=80),
        ),
        "match": Case(
            lambda cost: perception.match(cost).queries, obvious.assigned,
            lambda key: (jax.random.uniform(key, (batch, s.queries, s.objects)),),
            f"{s.queries} queries, {s.objects} targets", host=obvious.assigned_by_scipy,
        ),
    }  # fmt: skip


def _maps(s: Sizes, batch: int) -> dict[str, Case]:
    """Returns the operations on maps: sampling, attention, and heatmaps."""
    heads, classes = 8, 10
    shape, places = (batch, s.grid, s.grid, classes), s.grid**2 // 4
    drawing = {"shape": (s.grid, s.grid), "classes": classes}

    def attention(key: jax.Array) -> tuple[Any, ...]:
        levels = [_normal(key, batch, size, size, heads, s.width // 4) for size in s.maps]
        read = (batch, s.queries, heads, len(levels), 4)
        return levels, jax.random.uniform(key, (*read, 2)), jax.random.uniform(key, read)

    def objects(key: jax.Array) -> tuple[Any, ...]:
        whole = lambda most, *more: jax.random.randint(key, (batch, s.objects, *more), 0, most)  # noqa: E731
        return whole(s.grid, 2), whole(8), whole(classes), jnp.ones((batch, s.objects), bool)

    cells = f"{s.grid} x {s.grid} cells"
    return {
        "grid_sample": Case(
            perception.grid_sample, obvious.sampled,
            lambda key: (
                _normal(key, batch, s.grid, s.grid, s.width),
                jax.random.uniform(key, (batch, places, 2), minval=-1, maxval=1),
            ),
            f"{places:,} points in {cells} x {s.width}", "grid_sample bilinear zeros False", 2,
        ),
        "deformable_attention": Case(
            lambda levels, *rest: perception.deformable_attention(levels, *rest), obvious.attended, attention,
            f"{s.queries} queries, {heads} heads, {len(s.maps)} levels, 4 points", "deformable", 3,
        ),
        "heatmap_targets": Case(
            functools.partial(perception.heatmap_targets, **drawing), functools.partial(obvious.drawn, **drawing),
            objects, f"{s.objects} objects in {cells} x {classes}",
        ),
        "focal_loss": Case(
            perception.focal_loss, obvious.focal,
            lambda key: (_normal(key, *shape), jnp.maximum(1.5 * jax.random.uniform(key, shape) - 0.5, 0)),
            f"{cells} x {classes}", differentiable=1,
        ),
        "heatmap_peaks": Case(
            lambda heat: perception.heatmap_peaks(heat, s.objects).scores,
            functools.partial(obvious.peaks, count=s.objects), lambda key: (_normal(key, *shape),),
            f"{s.objects} of {cells} x {classes}",
        ),
    }  # fmt: skip


def _sparse(s: Sizes, batch: int) -> dict[str, Case]:
    """Returns the sparse convolutions, of kernels of 3 x 3 x 3, and dense ones that are read at the same sites."""
    shape, cells, width = s.voxels, math.prod(s.voxels), s.width // 2
    coarse_shape = tuple((size - 1) // 2 + 1 for size in shape)
    step, capacity = {"stride": 2, "padding": 1}, s.sites

    def sites(key: jax.Array) -> jax.Array:
        # A stratified choice: one site in each of as many intervals of cells.
        span = cells // s.sites
        at = jnp.arange(s.sites) * span + jax.random.randint(key, (batch, s.sites), 0, span)
        return at.astype(jnp.int32)

    def kernel(key: jax.Array) -> jax.Array:
        return _normal(key, 3, 3, 3, width, width)

    def grid(features: Any, index: Any, of: Any = shape) -> perception.SparseGrid:
        return perception.SparseGrid(index, features, of)

    def coarse(index: jax.Array) -> jax.Array:
        ones = jnp.ones((*index.shape, 1))
        kernel = jnp.ones((3, 3, 3, 1, 1))
        return perception.strided_conv(grid(ones, index), kernel, capacity=capacity, **step)[0].index

    def inputs(key: jax.Array) -> tuple[Any, ...]:
        return _normal(key, batch, s.sites, width), kernel(key), sites(key)

    def strided(key: jax.Array) -> tuple[Any, ...]:
        return *inputs(key), coarse(sites(key))

    def inverse(key: jax.Array) -> tuple[Any, ...]:
        return _normal(key, batch, capacity, width), kernel(key), coarse(sites(key)), sites(key)

    def inverted(features: Any, kernel: Any, index: Any, like: Any) -> Any:
        fine = grid(like[..., None], like)
        return perception.inverse_conv(grid(features, index, coarse_shape), kernel, fine, **step).features

    size = f"{s.sites:,} sites of {' x '.join(map(str, shape))} x {width}"
    return {
        "submanifold_conv": Case(
            lambda features, kernel, index: perception.submanifold_conv(grid(features, index), kernel).features,
            functools.partial(obvious.submanifold, shape=shape), inputs, size, "submanifold", 2, (1,),
        ),
        "strided_conv": Case(
            lambda features, kernel, index, _: perception.strided_conv(
                grid(features, index), kernel, capacity=capacity, **step
            )[0].features,
            functools.partial(obvious.strided, shape=shape), strided, size, "strided", 2, (1,),
        ),
        "inverse_conv": Case(
            inverted, functools.partial(obvious.inverse, shape=coarse_shape, fine=shape), inverse, size, "inverse", 2,
            (1,),
        ),
    }  # fmt: skip
