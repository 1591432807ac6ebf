"""Self-supervised pretraining of the backbone of `bev.Views`: it predicts hidden parts of camera images."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from engine import Loss, Task

from ..backbones.masked_autoencoder import hidden_blocks, patches, standardised
from .bev import view_backbone
from .camera_scenes import PATCH
from .parts import wide_linear


class MaskedModel(nnx.Module):
    """A backbone, the color of hidden pixels, and a linear decoder of the pixels of each patch."""

    def __init__(self, width: int, backbone: nnx.Module, rngs: nnx.Rngs):
        self.backbone = backbone
        self.hidden = nnx.Param(jnp.full(3, 0.5))  # as a part of 255
        self.decoder = nnx.Linear(width, PATCH[0] * PATCH[1] * 3, rngs=rngs)

    def __call__(self, images, intrinsics, hidden):
        """Returns the predicted values of each patch, `[batch, cameras, rows / 8, columns / 4, values]`.

        Args:
            images, intrinsics: as in `bev.Backbone`.
            hidden: bool `[batch, cameras, rows / 8, columns / 4]`: patches that the backbone does not see.
        """
        pixels = jnp.repeat(jnp.repeat(hidden, PATCH[0], axis=2), PATCH[1], axis=3)
        color = self.hidden[...]
        seen = jnp.where(pixels[..., None], 255 * color, images.astype(color.dtype))
        return wide_linear(self.decoder, self.backbone(seen, intrinsics))


@dataclasses.dataclass
class MaskedViews(Task):
    """Predicts the pixels of hidden blocks of images. The arrays below `backbone/` are those of `bev.Views`."""

    width: int = 64
    backbone: str | None = None  # as in bev.Views
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    share: float = 0.6  # of the blocks of an image that are hidden
    block: tuple[int, int] = (2, 4)  # rows and columns of a block, in patches: 16x16 pixels
    full_precision = ("intrinsics",)

    def build(self, rngs):
        return MaskedModel(self.width, view_backbone(self.width, self.backbone, self.settings, rngs), rngs)

    def loss(self, model, batch, rng, context):
        images = batch["images"]
        wanted = standardised(patches(images / jnp.float32(255), PATCH))  # [batch, cameras, rows, columns, values]
        cameras, rows, columns = wanted.shape[1:4]
        keys = jax.vmap(lambda key: jax.random.split(key, cameras))(context.rng).reshape(-1)
        hidden = hidden_blocks(keys, (rows, columns), self.block, self.share).reshape(wanted.shape[:-1])
        error = jnp.abs(model(images, batch["intrinsics"], hidden) - wanted).mean(-1)
        return Loss.of(error, hidden)
