"""Vehicles and lane lines in the bird's-eye view from six cameras: lift, splat, and a convolutional network.

Each patch of an image predicts features and a distribution over depths. Their outer product is a cloud of features,
which are summed in the cells of a grid (Lift, Splat, Shoot: Philion and Fidler 2020, arXiv:2008.05711). The depths are
also trained directly, as in BEVDepth (Li et al. 2022, arXiv:2206.10092), which takes them from lidar.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from engine import Loss, Mean, Task, metrics, plot

from .camera_scenes import GRID, KINDS, MASKS, PATCH
from .cameras import CAMERAS, COLUMNS, ROWS, Rig
from .lidar import STRIDE, Convolution, split
from .parts import wide_linear
from .scenes import EXTENT

CELL = 2 * EXTENT / GRID  # metres
DEPTHS = np.geomspace(2.5, 45, 40).astype(np.float32)  # metres ahead of a camera


class Backbone(nnx.Module):
    """Convolutions over images, and over the direction of each pixel: features of patches of 8x4 pixels.

    The size of a patch is the product of the `strides`.
    """

    def __init__(self, width: int, rngs: nnx.Rngs, strides: Sequence[tuple[int, int]] = ((2, 2), (2, 2), (2, 1))):
        sizes = (5, width // 4, width // 2, width)
        pairs = zip(itertools.pairwise(sizes), strides, strict=True)
        self.down = nnx.List([Convolution(a, b, stride, rngs) for (a, b), stride in pairs])
        self.blocks = nnx.List([Convolution(width, width, 1, rngs) for _ in range(3)])

    def __call__(self, images, intrinsics):
        """Returns `[batch, cameras, rows / 8, columns / 4, width]` for images `[batch, cameras, rows, columns, 3]`."""
        seen = directions(intrinsics, (1, 1), images.shape[2:4])
        seen = jnp.broadcast_to(seen, (*images.shape[:-1], 2))
        x = jnp.concatenate([images.astype(seen.dtype) / 127.5 - 1, seen], -1)
        x = x.reshape(-1, *x.shape[2:]).astype(self.down[0].conv.kernel.dtype)
        for layer in self.down:
            x = layer(x)
        for block in self.blocks:
            x = x + block(x)
        return x.reshape(*images.shape[:2], *x.shape[1:])


def middles(patch, size=(ROWS, COLUMNS)):
    """Returns column and row of the middle of each patch of an image of `size`, `[rows, columns, 2]`."""
    v, u = (jnp.arange(size // step) * step + (step - 1) / 2 for size, step in zip(size, patch, strict=True))
    return jnp.stack(jnp.meshgrid(u, v), -1)


def directions(intrinsics, patch, size=(ROWS, COLUMNS)):
    """Returns x and y of the ray through the middle of each patch, 1 m ahead: `[batch, cameras, rows, columns, 2]`."""
    focal, middle = intrinsics[..., (0, 1), (0, 1)], intrinsics[..., :2, 2]
    return (middles(patch, size) - middle[..., None, None, :]) / focal[..., None, None, :]


def cloud(intrinsics, poses):
    """Returns the points of all patches at all depths in the frame of the vehicle, `[batch, points, 3]`."""
    rays = directions(intrinsics, PATCH)
    rays = jnp.concatenate([rays, jnp.ones_like(rays[..., :1])], -1)
    rays = jnp.einsum("bcij,bchwj->bchwi", poses[..., :3, :3], rays)
    points = poses[:, :, None, None, None, :3, 3] + rays[..., None, :] * DEPTHS[:, None]
    return points.reshape(points.shape[0], -1, 3)


def splat(points, features):
    """Returns the sum of the features in each cell, `[batch, GRID, GRID, width]`, rows along y.

    Args:
        points: `[batch, points, 2 or more]`: x and y. Points outside of the grid are left out.
        features: `[batch, points, width]`.
    """
    cell = jnp.floor((points[..., :2] + EXTENT) / CELL).astype(jnp.int32)
    inside = ((cell >= 0) & (cell < GRID)).all(-1)
    index = jnp.where(inside, cell[..., 1] * GRID + cell[..., 0], GRID**2)  # out of bounds: dropped
    total = jax.vmap(lambda x, at: jax.ops.segment_sum(x, at, GRID**2))(features, index)
    return total.reshape(points.shape[0], GRID, GRID, -1)


def _nearest(depth):
    """Returns the index of the nearest of DEPTHS, by ratio."""
    return jnp.abs(jnp.log(depth)[..., None] - jnp.log(DEPTHS)).argmin(-1)


def ground(intrinsics, poses, patch=PATCH, size=(ROWS, COLUMNS)):
    """Returns the depth at which each patch would see level ground, one-hot `[..., depths]`; zeros above it."""
    rays = directions(intrinsics, patch, size)
    rise = jnp.einsum("bcj,bchwj->bchw", poses[..., 2, :2], rays) + poses[..., 2, 2, None, None]
    depth = poses[..., 2, 3, None, None] / jnp.maximum(-rise, 1e-2)
    return jnp.where(rise[..., None] < -1e-2, jax.nn.one_hot(_nearest(depth), len(DEPTHS)), 0)


class LiftSplat(nnx.Module):
    """Lifts images to a cloud of features, and splats it to a grid."""

    def __init__(self, width: int, channels: int, rngs: nnx.Rngs):
        self.backbone = Backbone(width, rngs)
        self.lift = nnx.Linear(width + len(DEPTHS), len(DEPTHS) + channels, rngs=rngs)

    def __call__(self, batch):
        """Returns the grid `[batch, GRID, GRID, channels]`, and logits of the depth of each patch `[..., depths]`.

        Both are float32, since bfloat16 would lose small features in the sums.
        """
        x = self.backbone(batch["images"], batch["intrinsics"])
        x = jnp.concatenate([x, ground(batch["intrinsics"], batch["poses"]).astype(x.dtype)], -1)
        x = self.lift(x).astype(jnp.float32)
        logits, features = x[..., : len(DEPTHS)], x[..., len(DEPTHS) :]
        lifted = jax.nn.softmax(logits)[..., None] * features[..., None, :]
        points = cloud(batch["intrinsics"], batch["poses"])
        return splat(points, lifted.reshape(*points.shape[:2], -1)), logits


class Above(nnx.Module):
    """Convolutions in the bird's-eye view, at half and a quarter of the grid's resolution, which are added up."""

    def __init__(self, channels: int, width: int, rngs: nnx.Rngs):
        half = [Convolution(channels, width, 2, rngs), Convolution(width, width, 1, rngs)]
        quarter = [
            Convolution(width, 2 * width, 2, rngs),
            *(Convolution(2 * width, 2 * width, 1, rngs) for _ in range(2)),
        ]
        self.half, self.quarter = nnx.List(half), nnx.List(quarter)
        self.across = nnx.Linear(2 * width, width, rngs=rngs)
        self.neck = Convolution(width, width, 1, rngs)

    def __call__(self, x):
        """Returns `[batch, GRID / 2, GRID / 2, width]`."""
        x = x.astype(self.across.kernel.dtype)
        for layer in self.half:
            x = layer(x)
        y = x
        for layer in self.quarter:
            y = layer(y)
        return self.neck(x + jnp.repeat(jnp.repeat(self.across(y), 2, axis=1), 2, axis=2))


class MaskHead(nnx.Module):
    """Logits of the masks: 2x2 cells of the grid for each cell of half the resolution."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.linear = nnx.Linear(width, STRIDE**2 * len(MASKS), bias_init=nnx.initializers.constant(-2.0), rngs=rngs)

    def __call__(self, x):
        """Returns `[batch, GRID, GRID, masks]` in float32."""
        return split(wide_linear(self.linear, x))


class BevModel(nnx.Module):
    """Lift, splat, convolutions from above, and a head."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.cameras = LiftSplat(width, width // 4, rngs)
        self.above = Above(width // 4, width // 2, rngs)
        self.head = MaskHead(width // 2, rngs)

    def __call__(self, batch):
        """Returns logits of the masks `[batch, GRID, GRID, masks]`, and of the depth of each patch."""
        grid, depths = self.cameras(batch)
        return self.head(self.above(grid)), depths


def mask_losses(logits, masks) -> dict[str, Loss]:
    """Returns the cross-entropy of each mask; cells of a mask, which are few, count three times."""
    losses = optax.sigmoid_binary_cross_entropy(logits, masks) * (1 + 2 * masks)
    return {name: 10 * Loss.of(losses[..., k]) for k, name in enumerate(MASKS)}


def depth_loss(logits, depth) -> Loss:
    """Returns the cross-entropy of the nearest of DEPTHS, over patches whose depth is among them."""
    known = (depth > DEPTHS[0] / 1.05) & (depth < DEPTHS[-1] * 1.05)
    return Loss.of(optax.softmax_cross_entropy_with_integer_labels(logits, _nearest(depth)), known)


def intersection_over_union(found, masks) -> dict[str, metrics.Ratio]:
    """Returns the intersection over union of each mask, over all cells of all scenes."""
    return {
        f"iou/{name}": metrics.Ratio.of(found[..., k] & masks[..., k], found[..., k] | masks[..., k])
        for k, name in enumerate(MASKS)
    }


@dataclasses.dataclass
class Bev(Task):
    """Finds the cells of vehicles and of lane lines."""

    width: int = 64
    depth: float = 0.5  # factor of the loss of depths
    full_precision = ("intrinsics", "poses", "depth")

    def build(self, rngs):
        return BevModel(self.width, rngs)

    def loss(self, model, batch, rng):
        logits, depths = model(batch)
        return Loss.sum(**mask_losses(logits, batch["masks"]), depth=self.depth * depth_loss(depths, batch["depth"]))

    def predict(self, model, batch):
        """Returns the probability of each mask in each cell, `masks` `[batch, GRID, GRID, masks]`."""
        return {"masks": jax.nn.sigmoid(model(batch)[0])}

    def evaluate(self, model, batch):
        return intersection_over_union(self.predict(model, batch)["masks"] > 0.5, batch["masks"])

    def figure(self, example, prediction):
        return overlay(example, prediction["masks"])[0]


def overlay(example, masks, corners=None):
    """Returns a figure, and its axes by name: images with the cells of masks, and the masks from above ("above").

    Args:
        example: images, calibration and true masks of a scene.
        masks: predicted probabilities `[GRID, GRID, masks]`.
        corners: boxes to draw, in the frame of each camera, `[cameras, boxes, 8, 3]`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.8), layout="constrained")
    axes = figure.subplot_mosaic([[*CAMERAS[:3], "above"], [*CAMERAS[3:], "above"]], width_ratios=(2, 2, 2, 3))
    rig, found = Rig(example["intrinsics"], example["poses"]), masks > 0.5
    centres = (np.arange(GRID) + 0.5) * CELL - EXTENT
    seen = {}
    for k, name in enumerate(MASKS):
        rows, columns = np.nonzero(found[..., k])
        seen[name] = rig.seen(np.stack([centres[columns], centres[rows], 0 * columns], -1))
    for n, camera in enumerate(CAMERAS):
        drawn = None if corners is None else corners[n]
        cells = {name: points[n][points[n][:, 2] > 1] for name, points in seen.items()}
        plot.camera(
            example["images"][n], example["intrinsics"][n], corners=drawn, cells=cells, ax=axes[camera], title=camera
        )
    extent = (-EXTENT, EXTENT, -EXTENT, EXTENT)
    plot.masks(masks, example["masks"], extent=extent, names=MASKS, ax=axes["above"])
    return figure, axes


class ViewModel(nnx.Module):
    """A backbone and a linear classifier of patches."""

    def __init__(self, width: int, backbone: nnx.Module, rngs: nnx.Rngs):
        self.backbone = backbone
        self.head = nnx.Linear(width, len(KINDS), rngs=rngs)

    def __call__(self, batch):
        """Returns logits `[batch, cameras, rows, columns, kinds]` of each patch."""
        return wide_linear(self.head, self.backbone(batch["images"], batch["intrinsics"]))


def view_backbone(width: int, name: str | None, settings: Mapping[str, Any], rngs: nnx.Rngs) -> nnx.Module:
    """Returns a new `Backbone`, or the one of a `name` of `backbones.catalog` with its `settings`."""
    if name is None:
        return Backbone(width, rngs)
    from .imported import ImportedBackbone

    return ImportedBackbone(width, name, settings, rngs)


@dataclasses.dataclass
class Views(Task):
    """Says what each patch of an image shows, image by image; trains the backbone of Bev, or another one."""

    width: int = 64
    backbone: str | None = None  # a name of convoy_zoo.models.backbones.catalog; None: that of Bev
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of the named backbone
    full_precision = ("intrinsics",)

    def build(self, rngs):
        return ViewModel(self.width, view_backbone(self.width, self.backbone, self.settings, rngs), rngs)

    def loss(self, model, batch, rng):
        logits = model(batch)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["kind"])
        return Loss.of(losses, metrics={"accuracy": Mean.of(logits.argmax(-1) == batch["kind"])})
