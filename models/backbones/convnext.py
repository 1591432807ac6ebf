"""ConvNeXt (Liu et al. 2022) with the names of timm."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from engine import layers

from .layouts import Layout, convnext_names
from .stochastic_depth import drop_path, rates


@dataclasses.dataclass(frozen=True)
class Variant:
    """Blocks and features of each stage, and the rate of stochastic depth of the last block."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    drop_path: float = 0.0


VARIANTS = {
    "convnext_tiny": Variant((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_small": Variant((3, 3, 27, 3), (96, 192, 384, 768)),
    "convnext_base": Variant((3, 3, 27, 3), (128, 256, 512, 1024)),
    "convnext_large": Variant((3, 3, 27, 3), (192, 384, 768, 1536)),
}
"""Name in timm -> variant."""


def norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Returns a normalisation over the features of each cell."""
    return nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)


def patches(width_in: int, width: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    """Returns a convolution over windows that do not overlap; what remains at the ends of odd sizes is left out."""
    window = (stride, stride)
    return nnx.Conv(width_in, width, window, strides=window, padding="VALID", rngs=rngs)


class Block(nnx.Module):
    """A convolution of each feature, and two dense layers, with a residual connection."""

    def __init__(self, width: int, rate: float, rngs: nnx.Rngs):
        self.rate = rate
        self.conv = nnx.Conv(width, width, (7, 7), padding="SAME", feature_group_count=width, rngs=rngs)
        self.norm = norm(width, rngs)
        self.up = layers.Dense(width, 4 * width, axes=("embed", "mlp"), bias=True, rngs=rngs)
        self.down = layers.Dense(4 * width, width, axes=("mlp", "embed"), bias=True, rngs=rngs)
        self.gamma = nnx.Param(jnp.full(width, 1e-6))

    def __call__(self, x, rng):
        """Returns `[batch, rows, columns, width]` for `x` of that shape."""
        y = nnx.gelu(self.up(self.norm(self.conv(x))), approximate=False)
        return x + drop_path(self.down(y) * self.gamma[...], self.rate, rng)


class Stage(nnx.Module):
    """Blocks of one stride, after a convolution that halves the rows and columns; the first stage has none."""

    def __init__(self, width_in: int, width: int, rates: Sequence[float], rngs: nnx.Rngs):
        halves = width_in != width
        self.norm = norm(width_in, rngs) if halves else None
        self.conv = patches(width_in, width, 2, rngs) if halves else None
        self.blocks = nnx.List([Block(width, rate, rngs) for rate in rates])

    def __call__(self, x, rng):
        """Returns `[batch, rows / 2, columns / 2, width]`, or rows and columns as they are in the first stage."""
        if self.norm is not None and self.conv is not None:
            x = self.conv(self.norm(x))
        for index, block in enumerate(self.blocks):
            x = block(x, layers.fold_in(rng, index))
        return x


class ConvNeXt(nnx.Module):
    """A backbone with maps at strides 4, 8, 16 and 32.

    Args:
        variant: a name of `VARIANTS`, or a Variant.
        classes: of a linear classifier over the mean of the last map; 0: none.
        layout: program whose names the weights have.
        rngs: random keys for the initial values.
    """

    def __init__(
        self,
        variant: str | Variant = "convnext_tiny",
        *,
        classes: int = 0,
        layout: Layout = "timm",
        rngs: nnx.Rngs,
    ):
        self.pretrained = convnext_names(layout)
        config = VARIANTS[variant] if isinstance(variant, str) else variant
        widths = config.widths
        self.stem_conv, self.stem_norm = patches(3, widths[0], 4, rngs), norm(widths[0], rngs)
        shapes = zip((widths[0], *widths), widths, rates(config.drop_path, config.depths), strict=False)
        self.stages = nnx.List([Stage(*shape, rngs) for shape in shapes])
        self.head_norm = norm(widths[-1], rngs)
        self.fc = layers.Dense(widths[-1], classes, axes=("embed", None), bias=True, rngs=rngs) if classes else None

    def features(self, images, rng=None) -> dict[int, jax.Array]:
        """Returns stride -> map `[batch, rows / stride, columns / stride, features]`, sizes rounded down.

        Args:
            images: `[batch, rows, columns, 3]`, normalised as the checkpoint needs it.
            rng: keys `[batch]` of stochastic depth; None: all blocks.
        """
        x, maps = self.stem_norm(self.stem_conv(images)), {}
        for index, stage in enumerate(self.stages):
            x = maps[4 << index] = stage(x, layers.fold_in(rng, index))
        return maps

    def __call__(self, images, rng=None):
        """Returns logits `[batch, classes]`; without a classifier, the normalised mean over the last map."""
        *_, last = self.features(images, rng).values()
        pooled = self.head_norm(last.mean((1, 2)))
        return pooled if self.fc is None else self.fc(pooled)
