"""From cameras to a grid from above: patches of images that are lifted to points, or cells that read the images.

Lift and splat is that of Philion and Fidler 2020 (arXiv:2008.05711). Cells that read are the spatial cross-attention
of BEVFormer (Li et al. 2022, arXiv:2203.17270), with `perception.DeformableAttention`.
"""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from engine import perception

from .bev import DEPTHS, Backbone, ground, middles
from .centers import Space
from .lidar import Convolution
from .parts import wide_linear

HEIGHTS = (0.0, 1.0, 2.0, 3.0)
"""Metres above the ground of the reference points of a cell. BEVFormer has four in 8 m of height."""
POINTS = 2  # points that a head reads around each reference point
NEAREST = 0.5  # metres ahead of a camera from where on it sees a point
VIEWS = 2  # most cameras that a cell reads
WAVES = (1.0, 3.0)  # along each side of the grid, in the features of the place of a cell


class PatchEncoder(nnx.Module):
    """Features of the patches of images, and the depth of level ground in each patch."""

    def __init__(self, width: int, strides: Sequence[tuple[int, int]], rngs: nnx.Rngs):
        self.patch = tuple(int(n) for n in np.prod(strides, axis=0))
        self.backbone = Backbone(width, rngs, strides)

    def patches(self, images, intrinsics, poses):
        """Returns `[batch, cameras, rows, columns, width + depths]`."""
        x = self.backbone(images, intrinsics)
        return jnp.concatenate([x, ground(intrinsics, poses, self.patch, images.shape[2:4]).astype(x.dtype)], -1)


class LiftSplatEncoder(PatchEncoder):
    """Lifts the patches of images to points, and sums them in the cells of a grid.

    Args:
        width: features of a patch and of a cell.
        space: the grid.
        strides: of the three levels of the backbone; the size of a patch is their product.
        rngs: random keys.
    """

    def __init__(self, width: int, space: Space, strides: Sequence[tuple[int, int]], rngs: nnx.Rngs):
        super().__init__(width, strides, rngs)
        self.space = space
        self.lift = nnx.Linear(width + len(DEPTHS), len(DEPTHS) + width, rngs=rngs)
        self.after = Convolution(width, width, 1, rngs)

    def __call__(self, images, intrinsics, poses):
        """Returns `[batch, rows, columns, width]` of the grid, and that it leaves out nothing, `[batch]`.

        Args:
            images: uint8 `[batch, cameras, rows, columns, 3]`.
            intrinsics: `[batch, cameras, 3, 3]`.
            poses: camera to level frame, `[batch, cameras, 4, 4]`.
        """
        space, size = self.space, images.shape[2:4]
        x = self.patches(images, intrinsics, poses)
        x = wide_linear(self.lift, x).reshape(x.shape[0], -1, self.lift.out_features)  # [batch, pixels, ...]
        depth = jax.nn.softmax(x[..., : len(DEPTHS)])
        points = perception.frustum_points(intrinsics, poses, middles(self.patch, size), jnp.asarray(DEPTHS))
        shape = (*space.cells, 1)
        index = perception.cell_indices(points, space.lower, space.size(shape), shape).reshape(depth.shape)
        grid = perception.lift_splat(x[..., len(DEPTHS) :], depth, index, space.cells[0] * space.cells[1])
        grid = grid.reshape(x.shape[0], space.cells[1], space.cells[0], -1).astype(self.lift.kernel.dtype)
        return self.after(grid), jnp.zeros(x.shape[0], jnp.int32)


def projected(points, intrinsics, poses, size):
    """Returns where cameras see points, and which ones.

    Args:
        points: `[..., 3]` in the level frame.
        intrinsics, poses: as in LiftSplatEncoder.
        size: rows and columns of an image.

    Returns:
        x and y, 0 to 1 over the image, `[batch, cameras, ..., 2]`; 0 for a point that is not seen. And whether it is
        seen, bool `[batch, cameras, ...]`: in front of the camera and within the image.
    """
    flat = points.reshape(-1, 3) - poses[..., None, :3, 3]
    to_pixels = jnp.einsum("bcij,bckj->bcik", intrinsics, poses[..., :3, :3], precision="highest")
    x, y, depth = jnp.moveaxis(jnp.einsum("bcik,bcpk->bcpi", to_pixels, flat, precision="highest"), -1, 0)
    ahead = depth > NEAREST
    depth = jnp.where(ahead, depth, 1)
    place = jnp.stack([(x / depth + 0.5) / size[1], (y / depth + 0.5) / size[0]], -1)
    seen = ahead & ((place >= 0) & (place < 1)).all(-1)
    shape = (*poses.shape[:2], *points.shape[:-1])
    return jnp.where(seen[..., None], place, 0).reshape(*shape, 2), seen.reshape(shape)


def best_views(places, seen, count: int):
    """Returns the cameras that see most points of each cell, what they see, and how many others see something.

    Args:
        places: `[batch, cameras, cells, heights, 2]`, and `seen` without the last dimension: those of `projected`.
        count: number of cameras.

    Returns:
        cameras, int32 `[batch, cells, count]`; places `[batch, cells, count, heights, 2]`; seen, likewise; and the
        pairs of a cell and a camera that are left out, int32 `[batch]`.
    """
    hits = jnp.moveaxis(seen.sum(-1), 1, 2)  # [batch, cells, cameras]
    most, camera = jax.lax.top_k(hits, count)
    lost = (hits > 0).sum((1, 2)) - (most > 0).sum((1, 2))
    places, seen = jnp.moveaxis(places, 1, 2), jnp.moveaxis(seen, 1, 2)
    places = jnp.take_along_axis(places, camera[..., None, None], 2)
    return camera, places, jnp.take_along_axis(seen, camera[..., None], 2), lost


class CameraAttention(perception.DeformableAttention):
    """Deformable attention of cells to the cameras that see them; the levels are those of HEIGHTS.

    The result is the mean over the cameras that see a cell. A reference point that a camera does not see has no weight.
    """

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        super().__init__(width, heads=heads, levels=len(HEIGHTS), points=POINTS, rngs=rngs)

    def __call__(self, queries, views, maps):  # pyright: ignore[reportIncompatibleMethodOverride], other references
        """Returns `[batch, cells, width]`.

        Args:
            queries: `[batch, cells, width]`.
            views: cameras, places and whether they are seen: the first results of `best_views`.
            maps: features of the patches of all cameras, `[batch, cameras, rows, columns, width]`.
        """
        camera, places, seen = views
        lead, shape = queries.shape[:2], self.shape
        rows, columns = maps.shape[2:4]
        offsets = self.offset(queries).reshape(*lead, *shape, 2).astype(jnp.float32)
        weights = jax.nn.softmax(self.weight(queries).astype(jnp.float32).reshape(*lead, shape[0], -1))
        share = seen / jnp.maximum(seen.any(-1).sum(-1), 1)[..., None, None]  # [batch, cells, cameras, heights]
        weights = weights.reshape(*lead, *shape)[:, :, :, None] * share[:, :, None, :, :, None]
        at = places[:, :, None, :, :, None] * np.array([columns, rows]) + offsets[:, :, :, None]
        # One map holds all cameras, with a row of zeros between them. A point beyond an image lies in these rows.
        row = jnp.clip(at[..., 1], -0.5, rows + 0.5) + 1 + (rows + 1) * camera[:, :, None, :, None, None]
        values = jnp.pad(self.value(maps), ((0, 0), (0, 0), (1, 0), (0, 0), (0, 0)))
        values = values.reshape(maps.shape[0], -1, *values.shape[3:])
        values = jnp.pad(values, ((0, 0), (0, 1), (0, 0), (0, 0)))
        points = jnp.stack([at[..., 0] / columns, row / values.shape[1]], -1)
        values = values.reshape(*values.shape[:3], shape[0], -1)
        points, weights = (x.reshape(*lead, shape[0], 1, -1, *x.shape[6:]) for x in (points, weights))
        return self.out(perception.deformable_attention([values], points, weights))


class QueryLayer(nnx.Module):
    """Cells read the cameras, and a hidden layer follows; both are added and normalised."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.attention = CameraAttention(width, heads, rngs)
        self.up, self.down = nnx.Linear(width, 2 * width, rngs=rngs), nnx.Linear(2 * width, width, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])

    def __call__(self, x, views, maps):
        """Returns the queries `[batch, cells, width]` after the layer."""
        x = self.norms[0](x + self.attention(x, views, maps)).astype(x.dtype)
        return self.norms[1](x + self.down(nnx.relu(self.up(x)))).astype(x.dtype)


class QueryEncoder(PatchEncoder):
    """Cells of the grid as queries, which read the features of patches at their points in the images.

    Args:
        width, space, strides, rngs: as in LiftSplatEncoder.
        heads, layers: heads of the attention, and its layers.
    """

    def __init__(self, width: int, space: Space, strides, heads: int, layers: int, rngs: nnx.Rngs):
        super().__init__(width, strides, rngs)
        self.space = space
        sizes = (4 * len(WAVES) + 2, 2 * width, width)
        self.query = nnx.List([nnx.Linear(*pair, rngs=rngs) for pair in itertools.pairwise(sizes)])
        self.reduce = nnx.Linear(width + len(DEPTHS), width, rngs=rngs)
        self.layers = nnx.List([QueryLayer(width, heads, rngs) for _ in range(layers)])
        self.after = Convolution(width, width, 1, rngs)

    def __call__(self, images, intrinsics, poses):
        """Returns what LiftSplatEncoder does; the second result counts views beyond the VIEWS of each cell."""
        maps = self.reduce(self.patches(images, intrinsics, poses))
        columns, rows = jnp.meshgrid(*(jnp.arange(count) for count in self.space.cells))
        cells = self.space.middle(jnp.stack([columns, rows], -1).reshape(-1, 2)).astype(jnp.float32)
        heights = jnp.broadcast_to(jnp.array(HEIGHTS)[:, None], (len(cells), len(HEIGHTS), 1))
        points = jnp.concatenate([jnp.repeat(cells[:, None], len(HEIGHTS), 1), heights], -1)
        *views, lost = best_views(*projected(points, intrinsics, poses, images.shape[2:4]), min(VIEWS, maps.shape[1]))
        x = self.query[1](nnx.relu(self.query[0](self._places(cells).astype(maps.dtype))))
        x = jnp.broadcast_to(x, (maps.shape[0], *x.shape))
        for layer in self.layers:
            x = layer(x, views, maps)
        return self.after(x.reshape(x.shape[0], *self.space.cells[::-1], -1)), lost

    def _places(self, cells):
        """Returns numbers of about 1 of places in metres `[cells, 2]`: waves along both axes, and the distance."""
        extent = np.array(self.space.upper[:2]) - np.array(self.space.lower[:2])
        angles = 2 * math.pi * cells[:, None] / extent * np.array(WAVES)[:, None]
        waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1).reshape(len(cells), -1)
        distance = jnp.linalg.norm(cells, axis=-1)
        return jnp.concatenate([waves, jnp.stack([jnp.log1p(distance) / 4, distance / 40], -1)], -1)
