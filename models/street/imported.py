"""A pretrained backbone in place of `bev.Backbone`: its maps, and the direction of each patch."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from ..backbones import catalog
from .bev import directions
from .camera_scenes import PATCH


class ImportedBackbone(nnx.Module):
    """Features of patches of 8x4 pixels: the sum of all maps of a backbone, and of the directions, each projected.

    Args:
        width: of the features.
        name: of the backbone, one of `catalog.NAMES`.
        settings: of the backbone, such as `{"frozen_norm": True}`.
        rngs: random keys for the initial values.
    """

    def __init__(self, width: int, name: str, settings: Mapping[str, Any], rngs: nnx.Rngs):
        self.net = catalog.create(name, rngs=rngs, **settings)
        self.mean, self.deviation = catalog.mean_and_deviation(name)
        sizes = catalog.widths(self.net).items()
        self.across = nnx.Dict({f"stride{stride}": nnx.Linear(size, width, rngs=rngs) for stride, size in sizes})
        self.seen = nnx.Linear(2, width, rngs=rngs)

    def __call__(self, images, intrinsics):
        """Returns `[batch, cameras, rows / 8, columns / 4, width]` for images `[batch, cameras, rows, columns, 3]`."""
        seen = directions(intrinsics, PATCH, images.shape[2:4])  # [batch, cameras, rows / 8, columns / 4, 2]
        x = (images.astype(seen.dtype) / 255 - np.array(self.mean)) / np.array(self.deviation)
        x = x.reshape(-1, *x.shape[2:]).astype(self.seen.kernel.dtype)
        total = self.seen(seen.reshape(-1, *seen.shape[2:]).astype(x.dtype))
        for stride, found in self.net.features(x).items():
            y = self.across[f"stride{stride}"](found)
            total += jax.image.resize(y, total.shape, "linear")
        return nnx.relu(total).reshape(*seen.shape[:-1], -1)
