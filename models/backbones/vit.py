"""Vision transformers (Dosovitskiy et al. 2021) with the names of timm: ViT, DeiT, DeiT III, DINOv2 and SigLIP.

The positions of a checkpoint belong to its image size; for images of another size they are interpolated.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from engine import TaskError, layers

from ..attention import attend, whole_rows
from .layouts import Layout, vit_names
from .stochastic_depth import check, drop_path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """What distinguishes the vision transformers.

    Attributes:
        width: features of a token.
        depth: number of layers.
        heads: of the attention.
        patch: pixels of a side of a patch.
        size: rows and columns of the images of the checkpoint, in pixels.
        class_token: a token that stands for the image.
        registers: number of tokens without a meaning (Darcet et al. 2024).
        positions_of_class: the class token has a position, too.
        layer_scale: initial factor of each residual branch; None: no factors.
        gelu: exact, or by tanh.
        pooling: what the classifier sees: the class token, the mean over the patches, or what a query finds in them.
        drop_path: the rate of stochastic depth of the last layer.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    size: tuple[int, int] = (224, 224)
    class_token: bool = True
    registers: int = 0
    positions_of_class: bool = True
    layer_scale: float | None = None
    gelu: Literal["exact", "tanh"] = "exact"
    pooling: Literal["class", "mean", "query"] = "class"
    drop_path: float = 0.0


_SMALL = Variant(width=384, heads=6)
_BASE = Variant()
_LARGE = Variant(width=1024, heads=16, depth=24)


def _deit3(of: Variant) -> Variant:
    return dataclasses.replace(of, positions_of_class=False, layer_scale=1e-6)


def _dinov2(of: Variant) -> Variant:
    return dataclasses.replace(of, patch=14, size=(518, 518), layer_scale=1e-5)


def _registers(of: Variant) -> Variant:
    return dataclasses.replace(of, registers=4, positions_of_class=False)


def _siglip(of: Variant, side: int) -> Variant:
    return dataclasses.replace(of, size=(side, side), class_token=False, positions_of_class=False, pooling="query")


VARIANTS = {
    "vit_tiny_patch16_224": Variant(width=192, heads=3),
    "vit_small_patch16_224": _SMALL,
    "vit_base_patch16_224": _BASE,
    "vit_large_patch16_224": _LARGE,
    "deit3_small_patch16_224": _deit3(_SMALL),
    "deit3_base_patch16_224": _deit3(_BASE),
    "vit_small_patch14_dinov2": _dinov2(_SMALL),
    "vit_base_patch14_dinov2": _dinov2(_BASE),
    "vit_large_patch14_dinov2": _dinov2(_LARGE),
    "vit_small_patch14_reg4_dinov2": _registers(_dinov2(_SMALL)),
    "vit_base_patch14_reg4_dinov2": _registers(_dinov2(_BASE)),
    "vit_large_patch14_reg4_dinov2": _registers(_dinov2(_LARGE)),
    "vit_base_patch16_siglip_224": _siglip(_BASE, 224),
    "vit_large_patch16_siglip_256": _siglip(_LARGE, 256),
}
"""Name in timm -> variant. timm's DeiT, without distillation, is `vit_*_patch16_224`."""


def norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Returns a layer normalisation with the epsilon of these models."""
    return nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)


class FeedForward(nnx.Module):
    """Two dense layers."""

    def __init__(self, config: Variant, rngs: nnx.Rngs):
        self.exact = config.gelu == "exact"
        self.up = layers.Dense(config.width, 4 * config.width, axes=("embed", "mlp"), bias=True, rngs=rngs)
        self.down = layers.Dense(4 * config.width, config.width, axes=("mlp", "embed"), bias=True, rngs=rngs)

    def __call__(self, x):
        """Returns `[batch, tokens, width]` for `x` of that shape."""
        y = nnx.gelu(self.up(x), approximate=not self.exact)
        return self.down(layers.constrain(y, "batch", "sequence", "mlp"))


class Attention(nnx.Module):
    """Attention of some tokens to others."""

    def __init__(self, config: Variant, rngs: nnx.Rngs):
        width, inner = config.width, ("embed", "heads")
        self.head_dim = width // config.heads
        self.query = layers.Dense(width, width, axes=inner, bias=True, rngs=rngs)
        self.key = layers.Dense(width, width, axes=inner, bias=True, rngs=rngs)
        self.value = layers.Dense(width, width, axes=inner, bias=True, rngs=rngs)
        self.out = layers.Dense(width, width, axes=("heads", "embed"), bias=True, rngs=rngs)

    def __call__(self, x, tokens=None):
        """Returns `[batch, queries, width]` for `x` of that shape, and `tokens` `[batch, keys, width]` or `x`."""
        tokens = x if tokens is None else tokens
        parts = ((self.query, x), (self.key, tokens), (self.value, tokens))
        q, k, v = (dense(y).reshape(*y.shape[:2], -1, self.head_dim) for dense, y in parts)
        found = attend(q, k, v)[0] if x is not tokens else layers.attention(q, k, v, causal=False)
        return self.out(found.reshape(x.shape))


class Block(nnx.Module):
    """Attention and a feed-forward part, each with pre-normalisation and a residual connection."""

    def __init__(self, config: Variant, rngs: nnx.Rngs):
        self.norm1, self.attention = norm(config.width, rngs), Attention(config, rngs)
        self.norm2, self.feed_forward = norm(config.width, rngs), FeedForward(config, rngs)
        factor = None if config.layer_scale is None else jnp.full(config.width, config.layer_scale)
        self.scale1, self.scale2 = (None if factor is None else nnx.Param(factor) for _ in range(2))
        self.more = check(config.drop_path) / max(config.depth - 1, 1)  # the rate grows by this with each layer

    def __call__(self, carry, rng):
        """Returns `[batch, tokens, width]`, in the structure of `carry`, with the rate of the next layer.

        Args:
            carry: the tokens; or, where layers are left out, a pair with the rate of stochastic depth `[batch]`.
            rng: keys `[batch]`, or None.
        """
        x, rate = carry if isinstance(carry, tuple) else (carry, 0.0)
        y = _scaled(self.attention(whole_rows(self.norm1(x))), self.scale1)
        x = layers.constrain(x + drop_path(y, rate, layers.fold_in(rng, 0)), "batch", "tokens", None)
        y = _scaled(self.feed_forward(whole_rows(self.norm2(x))), self.scale2)
        x = layers.constrain(x + drop_path(y, rate, layers.fold_in(rng, 1)), "batch", "tokens", None)
        return (x, rate + self.more) if isinstance(carry, tuple) else x


def _scaled(y, scale):
    return y if scale is None else y * scale[...]


class QueryPool(nnx.Module):
    """What a learned query finds in the patches, and a feed-forward part."""

    def __init__(self, config: Variant, rngs: nnx.Rngs):
        width = config.width
        self.latent = nnx.Param(nnx.initializers.normal(width**-0.5)(rngs.params(), (1, 1, width)))
        self.attention, self.norm = Attention(config, rngs), norm(width, rngs)
        self.feed_forward = FeedForward(config, rngs)

    def __call__(self, x):
        """Returns `[batch, width]` for tokens `[batch, tokens, width]`."""
        found = self.attention(jnp.broadcast_to(self.latent[...], (x.shape[0], 1, x.shape[-1])).astype(x.dtype), x)
        return (found + self.feed_forward(self.norm(found)))[:, 0]


class VisionTransformer(nnx.Module):
    """A backbone with one map, whose stride is the size of a patch.

    Args:
        variant: a name of `VARIANTS`, or a Variant.
        classes: of a linear classifier; 0: none.
        layout: program whose names the weights have; torchvision has ViT only.
        rngs: random keys for the initial values.
    """

    def __init__(
        self,
        variant: str | Variant = "vit_base_patch16_224",
        *,
        classes: int = 0,
        layout: Layout = "timm",
        rngs: nnx.Rngs,
    ):
        self.config = config = VARIANTS[variant] if isinstance(variant, str) else variant
        query, scaled = config.pooling == "query", config.layer_scale is not None
        self.pretrained = vit_names(layout, layer_scale=scaled, query_pool=query)
        width, window = config.width, (config.patch, config.patch)
        self.grid = (config.size[0] // config.patch, config.size[1] // config.patch)
        self.embed = nnx.Conv(3, width, window, strides=window, padding="VALID", rngs=rngs)
        count = self.grid[0] * self.grid[1] + (config.class_token and config.positions_of_class)
        init = nnx.initializers.normal(0.02)
        self.positions = nnx.Param(init(rngs.params(), (1, count, width)), logical_axes=(None, None, "embed"))
        self.class_token = nnx.Param(init(rngs.params(), (1, 1, width))) if config.class_token else None
        self.registers = nnx.Param(init(rngs.params(), (1, config.registers, width))) if config.registers else None
        self.stack = layers.Stack(lambda rngs: Block(config, rngs), config.depth, rngs=rngs)
        self.fc_norm = norm(width, rngs) if config.pooling == "mean" else None
        self.norm = norm(width, rngs) if config.pooling != "mean" else None
        self.pool = QueryPool(config, rngs) if config.pooling == "query" else None
        self.head = layers.Dense(width, classes, axes=("embed", None), bias=True, rngs=rngs) if classes else None

    def tokens(self, images, rng=None):
        """Returns the tokens `[batch, others + patches, width]` and the rows and columns of patches.

        Args:
            images: `[batch, rows, columns, 3]`, normalised as the checkpoint needs it; multiples of a patch.
            rng: keys `[batch]` of stochastic depth; None: all layers.
        """
        patch = self.config.patch
        if images.shape[1] % patch or images.shape[2] % patch:
            found = f"{images.shape[1]} x {images.shape[2]} pixels"
            raise TaskError(f"VisionTransformer: found images of {found}. Allowed: multiples of the patch, {patch}.")
        x = self.embed(images)
        shape = (x.shape[1], x.shape[2])
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        position = self._positions(shape).astype(x.dtype)
        others = [y for y in (self.class_token, self.registers) if y is not None]
        others = [jnp.broadcast_to(y[...], (x.shape[0], *y.shape[1:])).astype(x.dtype) for y in others]
        with_class = self.config.class_token and self.config.positions_of_class
        if with_class:
            others[0] = others[0] + position[:, :1]
        x = x + position[:, int(with_class) :]
        x = layers.constrain(jnp.concatenate([*others, x], axis=1), "batch", "tokens", None)
        if rng is not None and self.config.drop_path:
            x, _ = self.stack((x, jnp.zeros(x.shape[0])), rng=rng)
        else:
            x = self.stack(x)
        return x if self.norm is None else self.norm(x), shape

    def features(self, images, rng=None) -> dict[int, jax.Array]:
        """Returns stride -> map `[batch, rows / stride, columns / stride, width]`."""
        x, shape = self.tokens(images, rng)
        return {self.config.patch: x[:, -shape[0] * shape[1] :].reshape(x.shape[0], *shape, -1)}

    def __call__(self, images, rng=None):
        """Returns logits `[batch, classes]`; without a classifier, what it would see, `[batch, width]`."""
        x, shape = self.tokens(images, rng)
        patches = x[:, -shape[0] * shape[1] :]
        if self.pool is not None:
            x = self.pool(patches)
        elif self.fc_norm is not None:
            x = self.fc_norm(patches.mean(axis=1))
        else:
            x = x[:, 0]
        return x if self.head is None else self.head(x)

    def _positions(self, shape: tuple[int, int]) -> jax.Array:
        """Returns the positions for a number of rows and columns of patches, by cubic interpolation."""
        table = self.positions[...]
        if shape == self.grid:
            return table
        count = self.grid[0] * self.grid[1]
        of_class, grid = table[:, :-count], table[:, -count:].reshape(1, *self.grid, -1)
        grid = jax.image.resize(grid.astype(jnp.float32), (1, *shape, grid.shape[-1]), "cubic")
        return jnp.concatenate([of_class, grid.reshape(1, -1, grid.shape[-1]).astype(table.dtype)], axis=1)
