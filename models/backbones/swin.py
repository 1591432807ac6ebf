"""Swin transformer (Liu et al. 2021) with the names of timm: attention within windows, which every other block shifts.

Images may have other sizes than those of the checkpoint. As in timm, maps are padded with zeros at the end to whole
windows after the shift, and to an even number of rows and columns before four patches become one.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from engine import hub, layers

from ..attention import attend, only
from .stochastic_depth import drop_path, rates


@dataclasses.dataclass(frozen=True)
class Variant:
    """Blocks and heads of each stage, features of the first one, side of a window, and stochastic depth.

    The window is counted in patches, and `drop_path` is the rate of the last block.
    """

    depths: tuple[int, ...]
    heads: tuple[int, ...]
    width: int
    window: int = 7
    drop_path: float = 0.0


VARIANTS = {
    "swin_tiny_patch4_window7_224": Variant((2, 2, 6, 2), (3, 6, 12, 24), 96),
    "swin_small_patch4_window7_224": Variant((2, 2, 18, 2), (3, 6, 12, 24), 96),
    "swin_base_patch4_window7_224": Variant((2, 2, 18, 2), (4, 8, 16, 32), 128),
    "swin_base_patch4_window12_384": Variant((2, 2, 18, 2), (4, 8, 16, 32), 128, 12),
    "swin_large_patch4_window7_224": Variant((2, 2, 18, 2), (6, 12, 24, 48), 192),
}
"""Name in timm -> variant."""
PATCH = 4


def norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Returns a normalisation over the features of each patch."""
    return nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)


def pad(x, multiple: int):
    """Returns `x` `[batch, rows, columns, width]` with zeros at the end, so that rows and columns are multiples."""
    rows, columns = (-size % multiple for size in x.shape[1:3])
    return jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0))) if rows or columns else x


def split(x, window: int):
    """Returns the windows `[batch, windows, window * window, ...]` of a map `[batch, rows, columns, ...]`."""
    batch, rows, columns, *rest = x.shape
    x = x.reshape(batch, rows // window, window, columns // window, window, *rest).swapaxes(2, 3)
    return x.reshape(batch, -1, window * window, *rest)


def joined(x, rows: int, columns: int, window: int):
    """Returns the map `[batch, rows, columns, width]` of windows: the reverse of `split`."""
    x = x.reshape(x.shape[0], rows // window, columns // window, window, window, -1)
    return x.swapaxes(2, 3).reshape(x.shape[0], rows, columns, -1)


def offsets(window: int) -> np.ndarray:
    """Returns the row of the table of positions for each pair of patches of a window, `[patches, patches]`."""
    place = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij"), -1).reshape(-1, 2)
    row, column = np.moveaxis(place[:, None] - place[None], -1, 0) + window - 1
    return row * (2 * window - 1) + column


def neighbours(shape: tuple[int, int], window: int, shift: tuple[int, int]) -> np.ndarray:
    """Returns which patches of a window were neighbours before the shift, bool `[windows, 1, patches, patches]`.

    Args:
        shape: rows and columns of the map, multiples of the window.
        window: rows and columns of a window.
        shift: by which the map was rolled.
    """

    def part(size: int, by: int) -> np.ndarray:  # what was rolled to the end is no neighbour of the rest
        place = np.arange(size)
        return (place >= size - window).astype(int) + (place >= size - by) if by else np.zeros(size, int)

    region = 3 * part(shape[0], shift[0])[:, None] + part(shape[1], shift[1])
    found = split(region[None], window)[0]
    return found[:, None, :, None] == found[:, None, None, :]


class Attention(nnx.Module):
    """Attention within windows, with a bias for each offset of two patches."""

    def __init__(self, width: int, heads: int, window: int, rngs: nnx.Rngs):
        self.heads, self.window = heads, window
        inner = ("embed", "heads")
        self.query = layers.Dense(width, width, axes=inner, bias=True, rngs=rngs)
        self.key = layers.Dense(width, width, axes=inner, bias=True, rngs=rngs)
        self.value = layers.Dense(width, width, axes=inner, bias=True, rngs=rngs)
        self.out = layers.Dense(width, width, axes=("heads", "embed"), bias=True, rngs=rngs)
        table = nnx.initializers.truncated_normal(0.02)(rngs.params(), ((2 * window - 1) ** 2, heads))
        self.positions = nnx.Param(table)

    def __call__(self, x, shift: int):
        """Returns `[batch, rows, columns, width]` for `x` of that shape, in windows that are shifted by `shift`.

        Along a dimension in which one window holds the map, nothing is shifted.
        """
        window, (rows, columns) = self.window, x.shape[1:3]
        by = (shift if rows > window else 0, shift if columns > window else 0)
        x = pad(jnp.roll(x, (-by[0], -by[1]), (1, 2)) if any(by) else x, window)
        shape = (x.shape[1], x.shape[2])
        x = split(x, window)
        q, k, v = (dense(x).reshape(*x.shape[:3], self.heads, -1) for dense in (self.query, self.key, self.value))
        bias = jnp.moveaxis(self.positions[...][offsets(window)], -1, 0).astype(jnp.float32)
        found, _ = attend(q, k, v, bias + only(neighbours(shape, window, by)) if any(by) else bias)
        x = joined(self.out(found.reshape(x.shape)), *shape, window)[:, :rows, :columns]
        return jnp.roll(x, by, (1, 2)) if any(by) else x


class Block(nnx.Module):
    """Attention and a feed-forward part, each with pre-normalisation and a residual connection."""

    def __init__(self, width: int, heads: int, window: int, rate: float, rngs: nnx.Rngs):
        self.rate = rate
        self.norm1, self.attention = norm(width, rngs), Attention(width, heads, window, rngs)
        self.norm2 = norm(width, rngs)
        self.up = layers.Dense(width, 4 * width, axes=("embed", "mlp"), bias=True, rngs=rngs)
        self.down = layers.Dense(4 * width, width, axes=("mlp", "embed"), bias=True, rngs=rngs)

    def __call__(self, x, shift: int, rng):
        """Returns `[batch, rows, columns, width]` for `x` of that shape."""
        x = x + drop_path(self.attention(self.norm1(x), shift), self.rate, layers.fold_in(rng, 0))
        y = self.down(nnx.gelu(self.up(self.norm2(x)), approximate=False))
        return x + drop_path(y, self.rate, layers.fold_in(rng, 1))


class Merge(nnx.Module):
    """Makes one patch of four, with twice the features."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norm = norm(4 * width, rngs)
        self.reduction = layers.Dense(4 * width, 2 * width, axes=(None, "embed"), rngs=rngs)

    def __call__(self, x):
        """Returns `[batch, rows / 2, columns / 2, 2 * width]`, sizes rounded up."""
        x = pad(x, 2)
        batch, rows, columns, width = x.shape
        x = x.reshape(batch, rows // 2, 2, columns // 2, 2, width).transpose(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(x.reshape(batch, rows // 2, columns // 2, 4 * width)))


class Stage(nnx.Module):
    """Blocks of one stride, after a merge of patches; the first stage has none."""

    def __init__(self, config: Variant, index: int, rngs: nnx.Rngs):
        width, self.window = config.width << index, config.window
        self.merge = Merge(width // 2, rngs) if index else None
        blocks = rates(config.drop_path, config.depths)[index]
        self.blocks = nnx.List([Block(width, config.heads[index], config.window, rate, rngs) for rate in blocks])

    def __call__(self, x, rng):
        """Returns `[batch, rows / 2, columns / 2, width]`, or rows and columns as they are in the first stage."""
        if self.merge is not None:
            x = self.merge(x)
        for index, block in enumerate(self.blocks):
            x = block(x, index % 2 * (self.window // 2), layers.fold_in(rng, index))
        return x


class SwinTransformer(nnx.Module):
    """A backbone with maps at strides 4, 8, 16 and 32.

    A checkpoint of another window does not fit: its tables of positions have other shapes, which the error lists.

    Args:
        variant: a name of `VARIANTS`, or a Variant.
        classes: of a linear classifier over the mean of the last map; 0: none.
        rngs: random keys for the initial values.
    """

    pretrained: ClassVar = hub.Names(
        {
            "embed": "patch_embed.proj",
            "embed_norm": "patch_embed.norm",
            r"stages/(\d)/merge/(\w+)": r"layers.\1.downsample.\2",
            r"stages/(\d/blocks/\d+)/attention/query": r"layers.\1.attn.qkv[0 of 3]",
            r"stages/(\d/blocks/\d+)/attention/key": r"layers.\1.attn.qkv[1 of 3]",
            r"stages/(\d/blocks/\d+)/attention/value": r"layers.\1.attn.qkv[2 of 3]",
            r"stages/(\d/blocks/\d+)/attention/out": r"layers.\1.attn.proj",
            r"stages/(\d/blocks/\d+)/attention/positions": r"layers.\1.attn.relative_position_bias_table",
            r"stages/(\d/blocks/\d+)/up": r"layers.\1.mlp.fc1",
            r"stages/(\d/blocks/\d+)/down": r"layers.\1.mlp.fc2",
            r"stages/(\d/blocks/\d+/norm\d)": r"layers.\1",
            "fc": "head.fc",
        },
        heads=("fc",),
    )

    def __init__(self, variant: str | Variant = "swin_tiny_patch4_window7_224", *, classes: int = 0, rngs: nnx.Rngs):
        config = VARIANTS[variant] if isinstance(variant, str) else variant
        window = (PATCH, PATCH)
        self.embed = nnx.Conv(3, config.width, window, strides=window, padding="VALID", rngs=rngs)
        self.embed_norm = norm(config.width, rngs)
        self.stages = nnx.List([Stage(config, index, rngs) for index in range(len(config.depths))])
        width = config.width << (len(config.depths) - 1)
        self.norm = norm(width, rngs)
        self.fc = layers.Dense(width, classes, axes=("embed", None), bias=True, rngs=rngs) if classes else None

    def features(self, images, rng=None) -> dict[int, jax.Array]:
        """Returns stride -> map `[batch, rows / stride, columns / stride, features]`, not normalised.

        Sizes are rounded down to whole patches, and from one stage to the next rounded up.

        Args:
            images: `[batch, rows, columns, 3]`, normalised as the checkpoint needs it.
            rng: keys `[batch]` of stochastic depth; None: all blocks.
        """
        x, maps = self.embed_norm(self.embed(images)), {}
        for index, stage in enumerate(self.stages):
            x = maps[PATCH << index] = stage(x, layers.fold_in(rng, index))
        return maps

    def __call__(self, images, rng=None):
        """Returns logits `[batch, classes]`; without a classifier, the mean over the normalised last map."""
        *_, last = self.features(images, rng).values()
        pooled = self.norm(last).mean((1, 2))
        return pooled if self.fc is None else self.fc(pooled)
