"""Detection in lidar sweeps by centres, for any classes and range: pillars or sparse voxels, convolutions, and heads.

As in CenterPoint (Yin et al. 2021, arXiv:2006.11275): a heatmap of centres for each group of classes, and a box at
each centre. Pillars are those of PointPillars (Lang et al. 2019, arXiv:1812.05784), voxels those of SECOND (Yan et al.
2018, doi:10.3390/s18103337).
"""

import dataclasses
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from engine import Loss, Task, metrics, perception, plot

from .lidar import Convolution, at_cells
from .parts import as_matrix, wide_linear, wide_product

NUMBERS = 10  # of the code of a box: centre (3), log size (3), sin and cos of the heading, velocity (2)
VOXELS = 4  # voxels along each side of a cell of the heatmap
LAYERS = 2  # convolutions at the sites of each level of voxels
FOOTPRINT = (0, 1, 3, 4, 6)  # indices into the numbers of a box: x, y, length, width, heading


@dataclasses.dataclass(frozen=True)
class Space:
    """The space in which objects are found, as a grid from above.

    Attributes:
        lower, upper: corners in metres, x, y and z.
        cells: number of cells of the heatmap along x and y.
    """

    lower: tuple[float, float, float]
    upper: tuple[float, float, float]
    cells: tuple[int, int]

    def size(self, shape: Sequence[int]) -> tuple[float, ...]:
        """Returns the size in metres of each of `shape` cells along x, y and, if given, z."""
        return tuple((self.upper[k] - self.lower[k]) / count for k, count in enumerate(shape))

    def inside(self, points: jax.Array) -> jax.Array:
        """Returns which points `[..., 3 or more]` are in the space."""
        return ((points[..., :3] >= np.array(self.lower)) & (points[..., :3] < np.array(self.upper))).all(-1)

    def place(self, xy: jax.Array) -> jax.Array:
        """Returns points `[..., 2]` in cells of the heatmap, as fractions."""
        return (xy - np.array(self.lower[:2])) / np.array(self.size(self.cells))

    def middle(self, cell: jax.Array) -> jax.Array:
        """Returns the middle of cells (x, y) `[..., 2]` in metres."""
        return (cell + 0.5) * np.array(self.size(self.cells)) + np.array(self.lower[:2])


def point_features(points, space: Space):
    """Returns points with x, y and z from -1 to 1 in the space."""
    low, high = (np.array(corner, np.float32) for corner in (space.lower, space.upper))
    return jnp.concatenate([(points[..., :3] - low) / (high - low) * 2 - 1, points[..., 3:]], -1)


class PillarEncoder(nnx.Module):
    """A small network for each point, and the largest value in each column of the space.

    Pillars have half the size of a cell of the heatmap.
    """

    def __init__(self, inputs: int, width: int, space: Space, capacity: int, rngs: nnx.Rngs):
        self.space, self.capacity = space, capacity
        self.shape = (2 * space.cells[0], 2 * space.cells[1])
        self.linear = nnx.Linear(inputs + 5, width, rngs=rngs)
        self.down = Convolution(width, width, 2, rngs)

    def __call__(self, points, mask):
        """Returns `[batch, rows, columns, width]` of the heatmap's size, and the pillars beyond the capacity."""
        size, lower = self.space.size(self.shape), self.space.lower[:2]
        mask = mask & self.space.inside(points)
        index = perception.cell_indices(points, lower, size, self.shape, mask)
        found = perception.occupied_cells(index, self.shape[0] * self.shape[1], self.capacity)
        mean = perception.scatter_mean(points[..., :3], found.slots, self.capacity)
        mean = jax.vmap(lambda x, at: x.at[at].get(mode="fill", fill_value=0))(mean, found.slots)
        place = (points[..., :2] - np.array(lower)) / np.array(size)
        x = [point_features(points, self.space), points[..., :3] - mean, place - jnp.floor(place) - 0.5]
        x = nnx.relu(self.linear(jnp.concatenate(x, -1).astype(self.linear.kernel.dtype)))
        pillars = perception.scatter_max(x, found.slots, self.capacity)
        grid = perception.SparseGrid(found.cells, pillars, (1, self.shape[1], self.shape[0]))
        return self.down(grid.dense()[:, 0]), found.overflow


class SparseLayer(nnx.Module):
    """A sparse convolution, normalised at each site and rectified."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        shape = (3, 3, 3, inputs, outputs)
        self.kernel = nnx.Param(as_matrix(nnx.initializers.he_normal())(rngs.params(), shape))
        self.norm = nnx.LayerNorm(outputs, rngs=rngs)

    def __call__(self, grid, table):
        """Returns the grid with new features; `table` has the neighbours of its sites."""
        return self._rectified(perception.submanifold_conv(grid, self._kernel(grid), table))

    def half(self, grid, capacity: int):
        """Returns the grid at half the resolution with at most `capacity` sites, and the sites beyond them."""
        options = dict(stride=2, padding=1, capacity=capacity)
        grid, lost = perception.strided_conv(grid, self._kernel(grid), **options)
        return self._rectified(grid), lost

    def _kernel(self, grid):
        return self.kernel[...].astype(grid.features.dtype)

    def _rectified(self, grid):
        return dataclasses.replace(grid, features=nnx.relu(self.norm(grid.features)).astype(grid.features.dtype))


class VoxelEncoder(nnx.Module):
    """The mean of the points of each voxel, and sparse convolutions down to the resolution of the heatmap.

    Three levels have two convolutions at the same sites each, which share a table of neighbours. Heights are stacked.
    """

    def __init__(self, inputs: int, width: int, space: Space, capacity: int, heights: int, rngs: nnx.Rngs):
        self.space, self.capacity = space, capacity
        self.shape = (VOXELS * space.cells[0], VOXELS * space.cells[1], heights)
        self.linear = nnx.Linear(inputs, width // 2, rngs=rngs)
        widths = (width // 2, width // 2, width)
        self.same = nnx.List([nnx.List([SparseLayer(own, own, rngs) for _ in range(LAYERS)]) for own in widths])
        self.down = nnx.List([SparseLayer(*pair, rngs) for pair in itertools.pairwise(widths)])
        self.flat = Convolution(-(-heights // VOXELS) * width, width, 1, rngs)

    def __call__(self, points, mask):
        """Returns the same as `PillarEncoder`; the second result counts the voxels and sites beyond the capacity."""
        mask, shape = mask & self.space.inside(points), self.shape
        index = perception.cell_indices(points, self.space.lower, self.space.size(shape), shape, mask)
        found = perception.occupied_cells(index, shape[0] * shape[1] * shape[2], self.capacity)
        x = perception.scatter_mean(point_features(points, self.space), found.slots, self.capacity)
        x = nnx.relu(self.linear(x.astype(self.linear.kernel.dtype)))
        grid, lost = perception.SparseGrid(found.cells, x, (shape[2], shape[1], shape[0])), found.overflow
        for number, layers in enumerate(self.same):
            if number:
                grid, more = self.down[number - 1].half(grid, self.capacity)
                lost = lost + more
            table = perception.neighbours(grid)
            for layer in layers:
                grid = layer(grid, table)
        x = jnp.moveaxis(grid.dense(), 1, 3)  # [batch, rows, columns, heights, width]
        return self.flat(x.reshape(*x.shape[:3], -1)), lost


def parameters_of(layers):
    """Returns the kernels and the biases of layers, as two lists."""
    return [layer.kernel[...] for layer in layers], [layer.bias[...] for layer in layers]


class CenterHeads(nnx.Module):
    """A hidden layer for each group of classes, with a heatmap and the codes of boxes."""

    def __init__(self, width: int, groups: Sequence[Sequence[int]], rngs: nnx.Rngs):
        self.groups = tuple(map(tuple, groups))
        first = nnx.initializers.constant(-4.0)  # as if 2 % were centres
        self.hidden = nnx.List([nnx.Linear(width, width // 2, rngs=rngs) for _ in self.groups])
        self.heat = nnx.List([nnx.Linear(width // 2, len(own), bias_init=first, rngs=rngs) for own in self.groups])
        self.inner = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in self.groups])
        self.box = nnx.List([nnx.Linear(width, NUMBERS, rngs=rngs) for _ in self.groups])

    def heatmaps(self, x):
        """Returns logits of centres, float32 `[batch, rows, columns, classes]`."""
        # One product for all groups reads and writes the cells once; other groups have weight 0 in the second.
        kernel, bias = parameters_of(self.hidden)
        x = nnx.relu(x @ jnp.concatenate(kernel, 1) + jnp.concatenate(bias))
        kernel, bias = parameters_of(self.heat)
        classes = np.eye(sum(map(len, self.groups)), dtype=np.float32)
        places = [jnp.asarray(classes[list(group)], kernel[0].dtype) for group in self.groups]
        kernel = jnp.concatenate([one @ own for one, own in zip(kernel, places, strict=True)])
        bias = jnp.stack([one @ own for one, own in zip(bias, places, strict=True)]).sum(0)
        return wide_product(x.astype(kernel.dtype), kernel) + bias.astype(jnp.float32)

    def codes(self, x, rows, columns, labels):
        """Returns the codes of boxes of some classes at cells, float32 `[batch, cells, NUMBERS]`."""
        x = at_cells(x, rows, columns)
        codes = [wide_linear(box, nnx.relu(inner(x))) for inner, box in zip(self.inner, self.box, strict=True)]
        group_of = np.zeros(sum(map(len, self.groups)), np.int32)
        for number, own in enumerate(self.groups):
            group_of[list(own)] = number
        group = jnp.asarray(group_of)[labels]
        return jnp.take_along_axis(jnp.stack(codes, 2), group[..., None, None], 2)[:, :, 0]


class CenterPoint(nnx.Module):
    """An encoder of points, two levels of convolutions that are added up, and heads."""

    def __init__(self, encoder: nnx.Module, width: int, groups: Sequence[Sequence[int]], rngs: nnx.Rngs):
        self.encoder = encoder
        sizes = [(width, width, 1), (width, 2 * width, 2)]
        self.levels = nnx.List(
            [nnx.List([Convolution(a, b, stride, rngs), Convolution(b, b, 1, rngs)]) for a, b, stride in sizes]
        )
        self.across = nnx.List([nnx.Linear(b, width, rngs=rngs) for _, b, _ in sizes])
        self.neck = Convolution(width, 2 * width, 1, rngs)
        self.heads = CenterHeads(2 * width, groups, rngs)

    def __call__(self, *inputs):
        """Returns the features of cells `[batch, rows, columns, 2 width]`, and what the encoder leaves out."""
        x, lost = self.encoder(*inputs)  # pyright: ignore[reportCallIssue], both encoders are functions
        total = 0.0
        for number, (level, across) in enumerate(zip(self.levels, self.across, strict=True)):
            for layer in level:
                x = layer(x)
            total = total + jnp.repeat(jnp.repeat(across(x), 2**number, axis=1), 2**number, axis=2)
        return self.neck(nnx.relu(total)), lost


def encode(boxes, cell, space: Space):
    """Returns the codes of boxes `[..., 9]` at cells (x, y) of the heatmap, the inverse of `decode`."""
    heading = boxes[..., 6:7]
    parts = [boxes[..., :2] - space.middle(cell), boxes[..., 2:3], jnp.log(jnp.maximum(boxes[..., 3:6], 0.05))]
    return jnp.concatenate([*parts, jnp.sin(heading), jnp.cos(heading), boxes[..., 7:9] / 5], -1)


def decode(codes, cell, space: Space):
    """Returns the boxes of codes at cells (x, y)."""
    size, heading = jnp.exp(codes[..., 3:6].clip(-3, 4)), jnp.arctan2(codes[..., 6:7], codes[..., 7:8])
    parts = [codes[..., :2] + space.middle(cell), codes[..., 2:3], size, heading, 5 * codes[..., 8:10]]
    return jnp.concatenate(parts, -1)


@dataclasses.dataclass
class CenterDetection(Task):
    """Finds objects in sweeps, as boxes with heading, velocity and a score.

    A batch has `points` `[batch, points, inputs]` (x, y, z in metres, further numbers of about 1), `boxes` `[batch,
    objects, 9]` (x, y, z of the centre, length, width, height, heading, velocity along x and y; a NaN is not trained),
    `label` `[batch, objects]`, and a `mask` of both axes, "points" and "objects".

    Attributes:
        groups: names of the classes that share a head; in their order, they are the classes of the labels unless
            `classes` is given.
        classes: names of the classes of labels 0, 1, and so on; empty for the order of the groups.
        lower, upper: corners of the space in metres, x, y and z.
        cells: cells of the heatmap along x and y.
        inputs: numbers of a point.
        voxels: layers of voxels along z, instead of pillars; 0 for pillars. A pillar is half as wide as a cell of the
            heatmap, and a voxel a quarter.
        capacity: most pillars of a sweep, or voxels and sites of each level. `points_lost` counts what is left out.
        width: features of a cell; the levels have this and twice as many.
        predictions: most boxes of a sweep; four times as many peaks are compared.
        suppression: "circle": predicted centres are at least `apart` metres from better ones of their class; "rotated":
            boxes overlap better ones of their class by at most `overlap`.
        least: radius of the smallest target in cells.
        velocity_weight: weight of the error of velocities, in units of 5 m/s. CenterPoint's 0.2 for each m/s is 1.
    """

    groups: Sequence[Sequence[str]] = (("car",),)
    classes: Sequence[str] = ()
    lower: Sequence[float] = (-51.2, -51.2, -3.0)
    upper: Sequence[float] = (51.2, 51.2, 5.0)
    cells: Sequence[int] = (128, 128)
    inputs: int = 5
    voxels: int = 0
    capacity: int = 8000
    width: int = 32
    predictions: int = 100
    suppression: str = "circle"
    apart: Sequence[float] = ()
    overlap: float = 0.2
    least: int = 2
    velocity_weight: float = 0.2
    full_precision = ("points", "boxes")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(self.classes) or tuple(name for group in self.groups for name in group)

    @property
    def space(self) -> Space:
        """The space in which objects are found."""
        return Space(tuple(self.lower), tuple(self.upper), tuple(self.cells))  # pyright: ignore[reportArgumentType]

    def build(self, rngs):
        known = self.names
        if sorted(known) != sorted(name for group in self.groups for name in group):
            raise ValueError(f"groups = {self.groups}: each of the classes {', '.join(known)} belongs in one group.")
        groups = [[known.index(name) for name in group] for group in self.groups]
        if self.voxels:
            encoder = VoxelEncoder(self.inputs, self.width, self.space, self.capacity, self.voxels, rngs)
        else:
            encoder = PillarEncoder(self.inputs, self.width, self.space, self.capacity, rngs)
        return CenterPoint(encoder, self.width, groups, rngs)

    def loss(self, model, batch, rng):
        x, lost = model(batch["points"], batch["mask"]["points"])
        return self.loss_of_cells(model.heads, x, lost, batch)

    def loss_of_cells(self, heads, x, lost, batch):
        """Returns the loss of the features of cells, and of what the encoder leaves out."""
        boxes, labels, space = batch["boxes"], batch["label"], self.space
        cell = jnp.floor(space.place(boxes[..., :2]))
        present = batch["mask"]["objects"] & ((cell >= 0) & (cell < np.array(space.cells))).all(-1)
        cell = cell.clip(0, np.array(space.cells) - 1).astype(jnp.int32)
        radius = perception.gaussian_radius(boxes[..., 3:5] / np.array(space.size(space.cells)), 0.1, self.least)
        shape, names = (space.cells[1], space.cells[0]), self.names
        target = perception.heatmap_targets(cell, radius, labels, present, shape=shape, classes=len(names))
        heat = perception.focal_loss(heads.heatmaps(x), target).sum((1, 2, 3))
        count = jnp.maximum(present.sum(-1), 1).astype(heat.dtype)
        wanted = encode(boxes, cell, space)
        found = heads.codes(x, cell[..., 1], cell[..., 0], labels)
        error = jnp.abs(found - jnp.where(jnp.isnan(wanted), found, wanted))
        weights = np.array([1] * 8 + [self.velocity_weight] * 2, np.float32)
        return Loss.sum(
            heat=Loss.of(heat / count, count, metrics={"points_lost": metrics.Sum.of(lost)}),
            box=0.5 * Loss.of((error * weights).sum(-1), present),
        )

    def predict(self, model, batch):
        """Returns `boxes` `[batch, predictions, 9]`, `score`, `label`, and `valid`: False for no box, of score 0."""
        return self.boxes_of(model.heads, model(batch["points"], batch["mask"]["points"])[0])

    def boxes_of(self, heads, x):
        """Returns the boxes of the features of cells."""
        peaks = perception.heatmap_peaks(jax.nn.sigmoid(heads.heatmaps(x)), 4 * self.predictions)
        codes = heads.codes(x, peaks.rows, peaks.columns, peaks.labels)
        boxes = decode(codes, jnp.stack([peaks.columns, peaks.rows], -1), self.space)
        shared = dict(labels=peaks.labels, valid=peaks.scores > 0)
        if self.suppression == "circle":
            apart = jnp.asarray(self.apart or [1.0] * len(self.names), jnp.float32)[peaks.labels]
            kept = perception.circle_nms(boxes[..., :2], peaks.scores, self.predictions, radius=apart, **shared)
        else:
            flat = boxes[..., np.array(FOOTPRINT)]
            kept = perception.nms(flat, peaks.scores, self.predictions, threshold=self.overlap, **shared)
        boxes = jnp.take_along_axis(boxes, kept.indices[..., None], 1)
        label = jnp.take_along_axis(peaks.labels, kept.indices, 1)
        return {"boxes": boxes, "score": kept.scores, "label": label, "valid": kept.valid}

    def figure(self, example, prediction):
        chosen = prediction["valid"] & (prediction["score"] > 0.05)
        boxes, label = prediction["boxes"][chosen][:, FOOTPRINT], prediction["label"][chosen]
        truth = example["boxes"][example["mask"]["objects"]][:, FOOTPRINT]
        points = example["points"][example["mask"]["points"]]
        names = [self.names[index] for index in label]
        return plot.boxes(boxes, prediction["score"][chosen], truth, points=points, names=names, least=0.3)
