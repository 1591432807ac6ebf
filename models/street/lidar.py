"""Detection in lidar sweeps: pillars on a grid from above, convolutions, and a heatmap of centres with a box at each.

The pillars are those of PointPillars (Lang et al. 2019, arXiv:1812.05784): a small network for each point, and the
largest value in each cell. The heads and losses are those of CenterPoint (Yin et al. 2021, arXiv:2006.11275).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from engine import Loss, Padded, Task, metrics, perception, plot

from .parts import RectifiedNorm, as_matrix, wide_linear
from .scenes import CLASSES, EXTENT, RANGES, RAYS, SIZES, StreetScenes

CELLS, STRIDE = 128, 2  # cells of the grid along each side; of each level of convolutions
CELL = 2 * EXTENT / CELLS  # metres, also of the heatmap
HEIGHTS = 0.4 * np.arange(8)  # metres: features say how near a point is to each
FOOTPRINT = (0, 1, 3, 4, 6)  # indices into the numbers of a box: x, y, length, width, yaw
APART = (1.5, 2.0, 0.4, 0.7)  # [class] metres: of two predicted centres that are nearer, one is dropped
OBJECTS, PREDICTIONS = 64, 64  # most labelled objects of a sweep; boxes predicted for each
BOX = 11  # numbers of the box head: centre (3), log size (3), sin and cos of the yaw, velocity (2), moving (1)
WEIGHTS = (1, 1, 1, 1, 1, 1, 1, 1, 0.2, 0.2)  # weights of errors, without moving: one sweep hardly shows a velocity


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def largest(x, index, cells):
    """Returns the largest of the positive values in each cell, `[cells, width]`, or 0; indices out of bounds drop."""
    return jnp.zeros((cells, x.shape[-1]), x.dtype).at[index].max(x, mode="drop")


def _largest_forward(x, index, cells):
    grid = largest(x, index, cells)
    return grid, (x, index, grid)


def _largest_backward(cells, saved, gradient):
    x, index, grid = saved  # two gathers; the derivative that JAX gives to scatter-max has a scatter too
    won = (x > 0) & (x == grid.at[index].get(mode="fill", fill_value=-1))
    return jnp.where(won, gradient.at[index].get(mode="fill", fill_value=0), 0), None


largest.defvjp(_largest_forward, _largest_backward)


def winners(x, index, cells):
    """Returns the largest of the positive values of `x` in each cell, `[cells, width]`, and its place in `x`.

    It is for half precision, in which values of a cell are often equal: the first of them wins. One scatter gives both
    results, as the maximum of integers of 32 bits: those of the value, and the place. A cell without positive values
    has 0, and the place of any row.
    """
    if len(x) > 2**16:
        raise ValueError(f"winners: found {len(x):,} rows. Allowed are at most 65,536.")
    bits = jax.lax.bitcast_convert_type(x, jnp.uint16).astype(jnp.int32) & 0x7FFF  # without the sign of -0 and of NaN
    keys = bits << 16 | (2**16 - 1 - jnp.arange(len(x), dtype=jnp.int32))[:, None]
    best = jnp.zeros((cells, x.shape[-1]), jnp.int32).at[index].max(keys, mode="drop")
    values = jax.lax.bitcast_convert_type((best >> 16).astype(jnp.uint16), x.dtype)
    return values, jnp.minimum(2**16 - 1 - (best & 0xFFFF), len(x) - 1)


def point_features(points):
    """Returns the features of points `[..., 4]` in a list of arrays `[...]`."""
    place = (points[..., :2] + EXTENT) / CELL
    x, y, z, intensity = (points[..., k] for k in range(4))
    within = place - jnp.floor(place) - 0.5
    near = [nnx.relu(1 - jnp.abs(z - height) / 0.4) for height in HEIGHTS]
    return [x / EXTENT, y / EXTENT, within[..., 0], within[..., 1], z, intensity, *near]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def pillar_grid(points, index, kernel, bias, cells):
    """Returns `largest` of the rectified linear layer of the features of a sweep, in half precision.

    The gradient belongs to a single point of each cell and feature. So the backward pass reads the winning points, and
    no array of all points. Sums of products, instead of a product, are computed within the scatter.
    """
    return _pillar_grid_forward(points, index, kernel, bias, cells)[0]


def _pillar_grid_forward(points, index, kernel, bias, cells):
    features = [x.astype(kernel.dtype).astype(jnp.float32) for x in point_features(points)]
    wide = sum(x[:, None] * weight for x, weight in zip(features, kernel.astype(jnp.float32), strict=True))
    x = nnx.relu(wide + bias.astype(jnp.float32)).astype(kernel.dtype)
    values, place = winners(x, index, cells)
    return values, (points, place, values, kernel, bias)


def _pillar_grid_backward(cells, saved, gradient):
    points, place, values, kernel, bias = saved
    gradient = jnp.where(values > 0, gradient, 0).astype(jnp.float32)  # [cells, width]
    # Without care for negative places, which XLA compares with an array of zeros that it then copies.
    won = points.at[place].get(mode="promise_in_bounds", wrap_negative_indices=False)
    features = [x.astype(kernel.dtype) for x in point_features(won)]
    features.append(jnp.ones_like(features[0]))  # of the bias
    sums = (jnp.stack(features).astype(jnp.float32) * gradient).sum(1)
    return None, None, sums[:-1].astype(kernel.dtype), sums[-1].astype(bias.dtype)


pillar_grid.defvjp(_pillar_grid_forward, _pillar_grid_backward)


class Pillars(nnx.Module):
    """The features of each cell of the grid: the largest over its points, zeros without points."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.linear = nnx.Linear(6 + len(HEIGHTS), width, rngs=rngs)

    def __call__(self, points, mask):
        """Returns `[batch, CELLS, CELLS, width]`, rows along y, for points `[batch, points, 4]`."""
        place = (points[..., :2] + EXTENT) / CELL
        cell = jnp.floor(place).astype(jnp.int32)
        inside = mask & (cell >= 0).all(-1) & (cell < CELLS).all(-1)
        index = jnp.where(inside, cell[..., 1] * CELLS + cell[..., 0], CELLS**2)  # out of bounds: dropped
        assert self.linear.bias is not None
        kernel, bias = self.linear.kernel[...], self.linear.bias[...]
        # One index over the batch would make each device of a mesh compute the grid of the whole batch.
        if kernel.dtype == jnp.float32:
            x = nnx.relu(self.linear(jnp.stack(point_features(points), -1)))
            grid = jax.vmap(lambda x, index: largest(x, index, CELLS**2))(x, index)
        else:
            grid = jax.vmap(lambda *row: pillar_grid(*row, kernel, bias, CELLS**2))(points, index)
        return grid.reshape(points.shape[0], CELLS, CELLS, -1)


class Convolution(nnx.Module):
    """A 3x3 convolution, normalised over the batch and rectified."""

    def __init__(self, inputs: int, outputs: int, stride: int | tuple[int, int], rngs: nnx.Rngs):
        init = as_matrix(nnx.initializers.lecun_normal())
        self.conv = nnx.Conv(inputs, outputs, (3, 3), strides=stride, use_bias=False, kernel_init=init, rngs=rngs)
        self.norm = RectifiedNorm(outputs, momentum=0.95, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.conv(x))


class CenterModel(nnx.Module):
    """Pillars, three levels of convolutions that are added up at the resolution of the first, and two heads.

    The first level has cells of 1 m. Each of them predicts the four cells of the heatmap in it.
    """

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.pillars = Pillars(width // 2, rngs)
        sizes = [(width // 2, width), (width, 2 * width), (2 * width, 3 * width)]
        self.levels = nnx.List(
            [
                nnx.List([Convolution(a, b, STRIDE, rngs), Convolution(b, b, 1, rngs), Convolution(b, b, 1, rngs)])
                for a, b in sizes
            ]
        )
        self.across = nnx.List([nnx.Linear(b, width, rngs=rngs) for _, b in sizes])
        self.neck = Convolution(width, 2 * width, 1, rngs)
        first = nnx.initializers.constant(-4.0)  # as if 2 % were centres
        self.heat = nnx.Linear(2 * width, STRIDE**2 * len(CLASSES), bias_init=first, rngs=rngs)
        self.box = nnx.Linear(2 * width, STRIDE**2 * BOX, rngs=rngs)

    def __call__(self, points, mask):
        """Returns the result of `heads`."""
        return self.heads(self.features(points, mask))

    def features(self, points, mask):
        """Returns the input of the heads, a row for each cell of the first level."""
        x, total = self.pillars(points, mask), 0.0
        for number, (level, across) in enumerate(zip(self.levels, self.across, strict=True)):
            for layer in level:
                x = layer(x)
            total = total + jnp.repeat(jnp.repeat(across(x), 2**number, axis=1), 2**number, axis=2)
        return self.neck(nnx.relu(total))

    def heads(self, x):
        """Returns logits of centres `[batch, CELLS, CELLS, classes]`, and a function that returns codes of boxes.

        It takes rows and columns of cells, `[batch, cells]`, and returns `[batch, cells, BOX]`: few cells have a box.
        Both are float32, as the whole model is.
        """
        return split(wide_linear(self.heat, x)), functools.partial(self._codes, x)

    def _codes(self, x, rows, columns):
        codes = wide_linear(self.box, at_cells(x, rows // STRIDE, columns // STRIDE))
        parts = codes.reshape(*codes.shape[:2], STRIDE**2, BOX)
        part = rows % STRIDE * STRIDE + columns % STRIDE
        return jnp.take_along_axis(parts, part[..., None, None], axis=2)[:, :, 0]


def split(x, stride=STRIDE):
    """Returns the stride**2 parts of the features `[batch, rows, columns, width]` of cells as cells of a finer grid."""
    batch, rows, columns = x.shape[:3]
    x = x.reshape(batch, rows, columns, stride, stride, -1).swapaxes(2, 3)
    return x.reshape(batch, stride * rows, stride * columns, -1)


def join(x):
    """The inverse of `split`."""
    batch, rows, columns = x.shape[:3]
    x = x.reshape(batch, rows // STRIDE, STRIDE, columns // STRIDE, STRIDE, -1).swapaxes(2, 3)
    return x.reshape(batch, rows // STRIDE, columns // STRIDE, -1)


def at_cells(x, rows, columns):
    """Returns the features `[batch, cells, width]` of cells, for rows and columns `[batch, cells]`."""
    return jax.vmap(lambda x, row, column: x[row, column])(x, rows, columns)


def encode(boxes, labels, cell):
    """Returns the codes `[..., BOX - 1]` of boxes `[..., 9]` at cells (x, y) of the heatmap."""
    middle = (cell + 0.5) * CELL - EXTENT
    yaw = boxes[..., 6:7]
    return jnp.concatenate(
        [
            boxes[..., :2] - middle,
            boxes[..., 2:3] - 1,
            jnp.log(jnp.maximum(boxes[..., 3:6], 0.1) / jnp.asarray(SIZES, jnp.float32)[labels]),
            jnp.sin(yaw),
            jnp.cos(yaw),
            boxes[..., 7:9] / 5,
        ],
        -1,
    )


def decode(codes, labels, cell):
    """Returns the boxes of codes, the inverse of `encode`."""
    middle = (cell + 0.5) * CELL - EXTENT
    size = jnp.asarray(SIZES, jnp.float32)[labels] * jnp.exp(codes[..., 3:6].clip(-1, 1))
    yaw = jnp.arctan2(codes[..., 6:7], codes[..., 7:8])
    return jnp.concatenate(
        [codes[..., :2] + middle, codes[..., 2:3] + 1, size, yaw, codes[..., 8:10] * 5],
        -1,
    )


def heatmap(boxes, labels, present):
    """Returns targets `[batch, CELLS, CELLS, classes]`, 1 at a centre and less around it, and the cells of centres."""
    place = (boxes[..., :2] + EXTENT) / CELL
    cell = jnp.floor(place)
    sigma = jnp.maximum(boxes[..., 3:5].max(-1) / CELL / 6, 0.8)[..., None]
    along = [jnp.exp(-((jnp.arange(CELLS) - cell[..., k : k + 1]) ** 2) / (2 * sigma**2)) for k in (0, 1)]
    one = jnp.where(present[..., None], jax.nn.one_hot(labels, len(CLASSES)), 0)  # [batch, objects, classes]
    each = along[1][..., :, None] * along[0][..., None, :]  # [batch, objects, CELLS, CELLS]
    return jnp.stack([(each * one[..., c, None, None]).max(1) for c in range(len(CLASSES))], -1), cell


def focal(logits, target):
    """Returns the focal loss of each cell (CornerNet, Law and Deng 2018, arXiv:1808.01244, equation 1)."""
    log_p, log_q = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    p = jax.nn.sigmoid(logits)
    return jnp.where(target == 1, -((1 - p) ** 2) * log_p, -((1 - target) ** 4) * p**2 * log_q)


@dataclasses.dataclass
class LidarDetection(Task):
    """Finds cars, trucks, pedestrians and cyclists in a sweep, as boxes with heading, velocity and a score."""

    width: int = 32
    full_precision = ("points", "boxes")

    def build(self, rngs):
        return CenterModel(self.width, rngs)

    def loss(self, model, batch, rng):
        return self.loss_of_heads(model(batch["points"], batch["mask"]["points"]), batch)

    def loss_of_heads(self, found, batch):
        """Returns the loss of the result of the heads for a batch of sweeps."""
        logits, codes_at = found
        boxes, labels, present = batch["boxes"], batch["label"], batch["mask"]["objects"]
        target, cell = heatmap(boxes, labels, present)
        x, y = cell.astype(jnp.int32).clip(0, CELLS - 1).swapaxes(0, -1).swapaxes(1, 2)
        found = codes_at(y, x)  # [batch, objects, BOX]
        error = (jnp.abs(found[..., : BOX - 1] - encode(boxes, labels, cell)) * np.array(WEIGHTS)).sum(-1)
        moving = batch["moving"]
        wrong = jax.nn.softplus(found[..., BOX - 1]) - moving * found[..., BOX - 1]
        return Loss.sum(
            heat=(CELLS / STRIDE) ** 2
            / 20
            * Loss.of(focal(join(logits), join(target)).sum(-1)),  # 20: objects of a sweep
            box=0.5 * Loss.of(error, present),
            moving=0.2 * Loss.of(wrong, present),
        )

    def predict(self, model, batch):
        """Returns the most likely boxes: `boxes` `[batch, PREDICTIONS, 9]`, `score`, `label` and `moving`."""
        return self.boxes_of(model(batch["points"], batch["mask"]["points"]))

    def boxes_of(self, found):
        """Returns the most likely boxes of the result of the heads."""
        logits, codes_at = found
        score, y, x, label = perception.heatmap_peaks(jax.nn.sigmoid(logits), 2 * PREDICTIONS)
        score = jnp.maximum(score, 0)  # of unused places
        code = codes_at(y, x)
        boxes = decode(code, label, jnp.stack([x, y], -1))
        score = jnp.where(covered(boxes, label), 0, score)
        kept = jnp.argsort(-score, stable=True)[:, :PREDICTIONS]  # top_k would gather the batch on a mesh
        score, label = (jnp.take_along_axis(values, kept, 1) for values in (score, label))
        boxes, code = (jnp.take_along_axis(values, kept[..., None], 1) for values in (boxes, code))
        return {"boxes": boxes, "score": score, "label": label, "moving": (code[..., -1] > 0).astype(jnp.int32)}

    def figure(self, example, prediction):
        boxes, label = prediction["boxes"][:, FOOTPRINT], prediction["label"]
        truth = example["boxes"][example["mask"]["objects"]][:, FOOTPRINT]
        points = example["points"][example["mask"]["points"]]
        points = points[np.abs(points[:, :2]).max(1) < EXTENT]
        names = [CLASSES[index] for index in label]
        return plot.boxes(boxes, prediction["score"], truth, points=points, names=names, least=0.3)

    def evaluate(self, model, batch):
        return {"nds": score_of(self.predict(model, batch), batch)}


def covered(boxes, label):
    """Returns which boxes are too near to an earlier one of their class, `[batch, boxes]`."""
    apart = jnp.linalg.norm(boxes[:, :, None, :2] - boxes[:, None, :, :2], axis=-1)
    near = (apart < jnp.asarray(APART)[label][..., None]) & (label[:, :, None] == label[:, None])
    return jnp.tril(near, -1).any(-1)


def score_of(predicted, batch):
    """Returns the detection score of predictions of a batch of sweeps."""
    return metrics.DetectionScore.of(
        predicted["boxes"],
        predicted["score"],
        predicted["label"],
        batch["boxes"],
        batch["label"],
        batch["mask"]["objects"],
        attributes=(predicted["moving"], batch["moving"]),
        classes=CLASSES,
        ranges=RANGES,
    )


def sweeps(count: int = 1000, seed: int = 0) -> Padded:
    """Returns simulated sweeps, padded to the number of rays and to OBJECTS labels."""
    fields = {"points": ["points"], "objects": ["boxes", "label", "moving", "hits", "alone"]}
    return Padded(StreetScenes(count, seed), {"points": RAYS, "objects": OBJECTS}, fields)
