"""ResNet (He et al. 2016) as in torchvision, and the d-variant of He et al. 2019 as in timm.

The stride of a bottleneck is in its 3 x 3 convolution ("v1.5"). Names are those of torchvision and timm.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from engine import hub, layers

from .stochastic_depth import drop_path, rates

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Depth -> blocks of each stage."""
BOTTLENECKS = (50, 101, 152)
"""Depths with blocks of three convolutions."""


TABLE = {
    r"stages/(layer\d/\d+)/downsample/conv": r"\1.downsample.0",
    r"stages/(layer\d/\d+)/downsample/bn": r"\1.downsample.1",
    r"stages/(.+)": r"\1",
}
DEEP_TABLE = {
    r"stages/(layer\d/\d+)/downsample/conv": r"\1.downsample.1",
    r"stages/(layer\d/\d+)/downsample/bn": r"\1.downsample.2",
    r"stages/(.+)": r"\1",
    "conv1/conv1": "conv1.0",
    "conv1/bn1": "conv1.1",
    "conv1/conv2": "conv1.3",
    "conv1/bn2": "conv1.4",
    "conv1/conv3": "conv1.6",
}
"""Names of the d-variant."""


class FrozenNorm(nnx.BatchNorm):
    """Batch normalisation by the stored statistics, which training does not change."""

    def __call__(self, x, **_):  # pyright: ignore[reportIncompatibleMethodOverride], a layer has one input
        """Returns an array of the shape of `x`."""
        return super().__call__(x, use_running_average=True)


def conv(width_in: int, width: int, window: int, rngs: nnx.Rngs, stride: int = 1, groups: int = 1) -> nnx.Conv:
    """Returns a convolution without bias that pads as PyTorch does, alike on all sides."""
    return nnx.Conv(
        width_in,
        width,
        (window, window),
        strides=stride,
        padding=window // 2,
        feature_group_count=groups,
        use_bias=False,
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        rngs=rngs,
    )


def norm(width: int, frozen: bool, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """Returns a batch normalisation over the whole global batch, or by stored statistics."""
    return (FrozenNorm if frozen else nnx.BatchNorm)(width, momentum=0.9, epsilon=1e-5, rngs=rngs)


class Shortcut(nnx.Module):
    """Brings the input of a block to the shape of its result."""

    def __init__(self, width_in: int, width: int, stride: int, config: "ResNet", rngs: nnx.Rngs):
        self.pool = stride if config.deep_stem else 1  # the d-variant averages, so that no input is left out
        self.conv = conv(width_in, width, 1, rngs, stride // self.pool)
        self.bn = norm(width, config.frozen_norm, rngs)

    def __call__(self, x):
        """Returns `[batch, rows / stride, columns / stride, width]`."""
        if self.pool > 1:
            window = (self.pool, self.pool)
            x = nnx.avg_pool(x, window, strides=window, padding="SAME", count_include_pad=False)
        return self.bn(self.conv(x))


class Block(nnx.Module):
    """Two convolutions, or three in a bottleneck, with a residual connection."""

    def __init__(self, width_in: int, width: int, stride: int, rate: float, config: "ResNet", rngs: nnx.Rngs):
        self.rate = rate
        out = 4 * width if config.bottleneck else width
        sizes = [(width_in, width, 1), (width, width, 3), (width, out, 1)] if config.bottleneck else None
        sizes = sizes or [(width_in, width, 3), (width, width, 3)]
        strided = 1 if config.bottleneck else 0
        convs = [conv(*size, rngs, stride if i == strided else 1) for i, size in enumerate(sizes)]
        norms = [norm(size[1], config.frozen_norm, rngs) for size in sizes]
        self.conv1, self.conv2, self.bn1, self.bn2 = convs[0], convs[1], norms[0], norms[1]
        self.conv3, self.bn3 = (convs[2], norms[2]) if config.bottleneck else (None, None)
        changes = stride > 1 or width_in != out
        self.downsample = Shortcut(width_in, out, stride, config, rngs) if changes else None

    def __call__(self, x, rng):
        """Returns `[batch, rows / stride, columns / stride, width]`."""
        y = self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(x)))))
        if self.conv3 is not None and self.bn3 is not None:
            y = self.bn3(self.conv3(nnx.relu(y)))
        y = drop_path(y, self.rate, rng)
        return nnx.relu(y + (x if self.downsample is None else self.downsample(x)))


class DeepStem(nnx.Module):
    """Three 3 x 3 convolutions in place of one of 7 x 7."""

    def __init__(self, width: int, frozen: bool, rngs: nnx.Rngs):
        half = width // 2
        self.conv1, self.conv2 = conv(3, half, 3, rngs, 2), conv(half, half, 3, rngs)
        self.conv3 = conv(half, width, 3, rngs)
        self.bn1, self.bn2 = norm(half, frozen, rngs), norm(half, frozen, rngs)

    def __call__(self, x):
        """Returns `[batch, rows / 2, columns / 2, width]`."""
        x = nnx.relu(self.bn1(self.conv1(x)))
        return self.conv3(nnx.relu(self.bn2(self.conv2(x))))


class ResNet(nnx.Module):
    """A backbone with maps at strides 4, 8, 16 and 32.

    Args:
        depth: 18, 34, 50, 101 or 152; or the blocks of each stage, with `bottleneck`.
        bottleneck: blocks of three convolutions; None: as the depth has them.
        width: features of the first stage, before a bottleneck's factor of 4.
        stem: features of the stem.
        classes: of a linear classifier over the mean of the last map; 0: none.
        deep_stem: the d-variant: three convolutions first, and averages in the shortcuts.
        frozen_norm: normalise by the statistics of the checkpoint, which are not updated.
        drop_path: the rate of stochastic depth of the last block.
        rngs: random keys for the initial values.
    """

    def __init__(
        self,
        depth: int | Sequence[int] = 50,
        *,
        bottleneck: bool | None = None,
        width: int = 64,
        stem: int = 64,
        classes: int = 0,
        deep_stem: bool = False,
        frozen_norm: bool = False,
        drop_path: float = 0.0,
        rngs: nnx.Rngs,
    ):
        blocks = DEPTHS[depth] if isinstance(depth, int) else tuple(depth)
        self.bottleneck = depth in BOTTLENECKS if bottleneck is None else bottleneck
        self.deep_stem, self.frozen_norm = deep_stem, frozen_norm
        self.conv1 = DeepStem(stem, frozen_norm, rngs) if deep_stem else conv(3, stem, 7, rngs, 2)
        self.bn1 = norm(stem, frozen_norm, rngs)
        self.stages, features = nnx.Dict(), stem
        for stage, of_blocks in enumerate(rates(drop_path, blocks)):
            made = []
            for i, rate in enumerate(of_blocks):
                stride = 2 if stage and not i else 1
                made.append(Block(features, width << stage, stride, rate, self, rngs))
                features = (width << stage) * (4 if self.bottleneck else 1)
            self.stages[f"layer{stage + 1}"] = nnx.List(made)
        self.fc = nnx.Linear(features, classes, rngs=rngs) if classes else None

    @property
    def pretrained(self) -> hub.Names:
        """Names of the arrays in torchvision and timm."""
        return hub.Names(DEEP_TABLE if self.deep_stem else TABLE, heads=("fc",))

    def features(self, images, rng=None) -> dict[int, jax.Array]:
        """Returns stride -> map `[batch, rows / stride, columns / stride, features]`, sizes rounded up.

        Args:
            images: `[batch, rows, columns, 3]`, normalised as the checkpoint needs it.
            rng: keys `[batch]` of stochastic depth; None: all blocks.
        """
        x = nnx.relu(self.bn1(self.conv1(images)))
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # 0 is the least value after the rectification
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding="VALID")
        maps = {}
        for stage, blocks in enumerate(self.stages.values()):
            for index, block in enumerate(blocks):
                x = block(x, layers.fold_in(layers.fold_in(rng, stage), index))
            maps[4 << stage] = x
        return maps

    def __call__(self, images, rng=None):
        """Returns logits `[batch, classes]`; without a classifier, the mean over the last map."""
        *_, last = self.features(images, rng).values()
        pooled = last.mean((1, 2))
        return pooled if self.fc is None else self.fc(pooled)
