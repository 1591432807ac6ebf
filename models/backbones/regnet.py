"""RegNet (Radosavovic et al. 2020) with the names of timm: RegNetX, and RegNetY, which has squeeze-and-excitation.

A block is a bottleneck of a ResNet that is as wide in the middle, where its 3 x 3 convolution has groups of features.
"""

import dataclasses

import jax
from flax import nnx

from engine import layers

from .layouts import Layout, regnet_names
from .resnet import conv, norm
from .stochastic_depth import drop_path, rates


@dataclasses.dataclass(frozen=True)
class Variant:
    """Blocks and features of each stage, and what all blocks have in common.

    Attributes:
        depths: blocks of each stage.
        widths: features of each stage.
        group: features of a group of a 3 x 3 convolution; a stage with fewer features is one group.
        squeeze: width of the squeeze, as a share of the features before the block; 0: none (RegNetX).
        stem: features of the stem.
        drop_path: rate of stochastic depth of the last block.
        frozen_norm: batch normalisation by the stored statistics, which training does not change.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    group: int
    squeeze: float = 0.0
    stem: int = 32
    drop_path: float = 0.0
    frozen_norm: bool = False


VARIANTS = {
    "regnetx_002": Variant((1, 1, 4, 7), (24, 56, 152, 368), 8),
    "regnetx_004": Variant((1, 2, 7, 12), (32, 64, 160, 384), 16),
    "regnetx_004_tv": Variant((1, 2, 7, 12), (32, 64, 160, 400), 16),
    "regnetx_006": Variant((1, 3, 5, 7), (48, 96, 240, 528), 24),
    "regnetx_008": Variant((1, 3, 7, 5), (64, 128, 288, 672), 16),
    "regnetx_016": Variant((2, 4, 10, 2), (72, 168, 408, 912), 24),
    "regnetx_032": Variant((2, 6, 15, 2), (96, 192, 432, 1008), 48),
    "regnetx_040": Variant((2, 5, 14, 2), (80, 240, 560, 1360), 40),
    "regnetx_064": Variant((2, 4, 10, 1), (168, 392, 784, 1624), 56),
    "regnetx_080": Variant((2, 5, 15, 1), (80, 240, 720, 1920), 120),
    "regnetx_120": Variant((2, 5, 11, 1), (224, 448, 896, 2240), 112),
    "regnetx_160": Variant((2, 6, 13, 1), (256, 512, 896, 2048), 128),
    "regnetx_320": Variant((2, 7, 13, 1), (336, 672, 1344, 2520), 168),
    "regnety_002": Variant((1, 1, 4, 7), (24, 56, 152, 368), 8, 0.25),
    "regnety_004": Variant((1, 3, 6, 6), (48, 104, 208, 440), 8, 0.25),
    "regnety_006": Variant((1, 3, 7, 4), (48, 112, 256, 608), 16, 0.25),
    "regnety_008": Variant((1, 3, 8, 2), (64, 128, 320, 768), 16, 0.25),
    "regnety_008_tv": Variant((1, 3, 8, 2), (64, 144, 320, 784), 16, 0.25),
    "regnety_016": Variant((2, 6, 17, 2), (48, 120, 336, 888), 24, 0.25),
    "regnety_032": Variant((2, 5, 13, 1), (72, 216, 576, 1512), 24, 0.25),
    "regnety_040": Variant((2, 6, 12, 2), (128, 192, 512, 1088), 64, 0.25),
    "regnety_064": Variant((2, 7, 14, 2), (144, 288, 576, 1296), 72, 0.25),
    "regnety_080": Variant((2, 4, 10, 1), (168, 448, 896, 2016), 56, 0.25),
    "regnety_080_tv": Variant((2, 4, 10, 1), (224, 448, 896, 2016), 56, 0.25),
    "regnety_120": Variant((2, 5, 11, 1), (224, 448, 896, 2240), 112, 0.25),
    "regnety_160": Variant((2, 4, 11, 1), (224, 448, 1232, 3024), 112, 0.25),
    "regnety_320": Variant((2, 5, 12, 1), (232, 696, 1392, 3712), 232, 0.25),
    "regnety_640": Variant((2, 5, 12, 1), (328, 984, 1968, 4920), 328, 0.25),
    "regnety_1280": Variant((2, 7, 17, 1), (528, 1056, 2904, 7392), 264, 0.25),
    "regnety_2560": Variant((2, 7, 17, 1), (746, 1492, 4103, 10444), 373, 0.25),
}
"""Name in timm -> variant. The number is that of multiplications for an image of 224 x 224, in units of 0.1 billion."""


class ConvNorm(nnx.Module):
    """A convolution and a batch normalisation."""

    def __init__(
        self, width_in: int, width: int, window: int, frozen: bool, rngs: nnx.Rngs, stride: int = 1, groups: int = 1
    ):
        self.conv = conv(width_in, width, window, rngs, stride, groups)
        self.bn = norm(width, frozen, rngs)

    def __call__(self, x):
        """Returns `[batch, rows / stride, columns / stride, width]`, sizes rounded up."""
        return self.bn(self.conv(x))


class SqueezeExcitation(nnx.Module):
    """Scales each feature by a factor of 0..1, which two dense layers compute from the mean of all features."""

    def __init__(self, width: int, squeezed: int, rngs: nnx.Rngs):
        self.fc1 = nnx.Conv(width, squeezed, (1, 1), rngs=rngs)
        self.fc2 = nnx.Conv(squeezed, width, (1, 1), rngs=rngs)

    def __call__(self, x):
        """Returns `[batch, rows, columns, width]` for `x` of that shape."""
        mean = x.mean((1, 2), keepdims=True)
        return x * nnx.sigmoid(self.fc2(nnx.relu(self.fc1(mean))))


class Block(nnx.Module):
    """Three convolutions with a residual connection; squeeze-and-excitation follows the second one."""

    def __init__(self, width_in: int, width: int, stride: int, rate: float, config: Variant, rngs: nnx.Rngs):
        self.rate, frozen = rate, config.frozen_norm
        groups = width // min(config.group, width)
        self.conv1 = ConvNorm(width_in, width, 1, frozen, rngs)
        self.conv2 = ConvNorm(width, width, 3, frozen, rngs, stride, groups)
        squeezed = max(round(width_in * config.squeeze), 1)
        self.se = SqueezeExcitation(width, squeezed, rngs) if config.squeeze else None
        self.conv3 = ConvNorm(width, width, 1, frozen, rngs)
        changes = stride > 1 or width_in != width
        self.downsample = ConvNorm(width_in, width, 1, frozen, rngs, stride) if changes else None

    def __call__(self, x, rng):
        """Returns `[batch, rows / stride, columns / stride, width]`, sizes rounded up."""
        y = nnx.relu(self.conv2(nnx.relu(self.conv1(x))))
        y = self.conv3(y if self.se is None else self.se(y))
        return nnx.relu(drop_path(y, self.rate, rng) + (x if self.downsample is None else self.downsample(x)))


class Stage(nnx.Module):
    """Blocks of one stride; the first one halves the rows and columns."""

    def __init__(self, width_in: int, width: int, rates: list[float], config: Variant, rngs: nnx.Rngs):
        first = Block(width_in, width, 2, rates[0], config, rngs)
        self.blocks = nnx.List([first, *(Block(width, width, 1, rate, config, rngs) for rate in rates[1:])])

    def __call__(self, x, rng):
        """Returns `[batch, rows / 2, columns / 2, width]`, sizes rounded up."""
        for index, block in enumerate(self.blocks):
            x = block(x, layers.fold_in(rng, index))
        return x


class RegNet(nnx.Module):
    """A backbone with maps at strides 4, 8, 16 and 32.

    Args:
        variant: a name of `VARIANTS`, or a Variant.
        classes: of a linear classifier over the mean of the last map; 0: none.
        layout: program whose names the weights have, timm or torchvision.
        rngs: random keys for the initial values.
    """

    def __init__(
        self,
        variant: str | Variant = "regnety_004",
        *,
        classes: int = 0,
        layout: Layout = "timm",
        rngs: nnx.Rngs,
    ):
        config = VARIANTS[variant] if isinstance(variant, str) else variant
        self.pretrained = regnet_names(layout, config.depths)
        self.stem = ConvNorm(3, config.stem, 3, config.frozen_norm, rngs, 2)
        shapes = zip((config.stem, *config.widths), config.widths, rates(config.drop_path, config.depths), strict=False)
        self.stages = nnx.List([Stage(*shape, config, rngs) for shape in shapes])
        self.fc = nnx.Linear(config.widths[-1], classes, rngs=rngs) if classes else None

    def features(self, images, rng=None) -> dict[int, jax.Array]:
        """Returns stride -> map `[batch, rows / stride, columns / stride, features]`, sizes rounded up.

        Args:
            images: `[batch, rows, columns, 3]`, normalised as the checkpoint needs it.
            rng: keys `[batch]` of stochastic depth; None: all blocks.
        """
        x, maps = nnx.relu(self.stem(images)), {}
        for index, stage in enumerate(self.stages):
            x = maps[4 << index] = stage(x, layers.fold_in(rng, index))
        return maps

    def __call__(self, images, rng=None):
        """Returns logits `[batch, classes]`; without a classifier, the mean over the last map."""
        *_, last = self.features(images, rng).values()
        pooled = last.mean((1, 2))
        return pooled if self.fc is None else self.fc(pooled)
