"""A vision transformer (Dosovitskiy et al. 2021) that classifies an image by the mean over its patches."""

import dataclasses

import jax.numpy as jnp
import optax
from flax import nnx

from engine import Loss, Mean, Task, TaskError, layers

from .attention import whole_rows


class Attention(nnx.Module):
    """Self-attention over all patches."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.head_dim = width // heads
        self.project = nnx.List([layers.Dense(width, width, axes=("embed", "heads"), rngs=rngs) for _ in range(3)])
        self.out = layers.Dense(width, width, axes=("heads", "embed"), rngs=rngs)

    def __call__(self, x):
        """Returns `[batch, patches, width]` for `x` of that shape."""
        q, k, v = (project(x).reshape(*x.shape[:2], -1, self.head_dim) for project in self.project)
        return self.out(layers.attention(q, k, v, causal=False).reshape(x.shape))


class Block(nnx.Module):
    """Attention and a feed-forward part, each with pre-normalisation and a residual connection."""

    def __init__(self, config: "Vit", rngs: nnx.Rngs):
        self.norms = nnx.List([nnx.LayerNorm(config.width, rngs=rngs) for _ in range(2)])
        self.attention = Attention(config.width, config.heads, rngs)
        self.up = layers.Dense(config.width, 4 * config.width, axes=("embed", "mlp"), bias=True, rngs=rngs)
        self.down = layers.Dense(4 * config.width, config.width, axes=("mlp", "embed"), bias=True, rngs=rngs)
        self.dropout = layers.Dropout(config.dropout)

    def __call__(self, x, rng):
        """Returns `[batch, patches, width]` for `x` of that shape."""
        y = self.attention(whole_rows(self.norms[0](x)))
        x = layers.constrain(x + self.dropout(y, layers.fold_in(rng, 0)), "batch", "tokens", None)
        y = layers.constrain(self.up(whole_rows(self.norms[1](x))), "batch", "sequence", "mlp")
        y = self.down(layers.constrain(nnx.gelu(y), "batch", "sequence", "mlp"))
        return layers.constrain(x + self.dropout(y, layers.fold_in(rng, 1)), "batch", "tokens", None)


class VisionTransformer(nnx.Module):
    """Patch embedding with learned positions, a stack of layers, the mean over patches, and a linear classifier."""

    def __init__(self, config: "Vit", rngs: nnx.Rngs):
        self.patch = config.patch
        patches = (config.size // config.patch) ** 2
        self.embed = layers.Dense(config.patch**2, config.width, axes=(None, "embed"), bias=True, rngs=rngs)
        init = nnx.initializers.normal(0.02)(rngs.params(), (patches, config.width))
        self.positions = nnx.Param(init, logical_axes=(None, "embed"))
        self.stack = layers.Stack(lambda rngs: Block(config, rngs), config.depth, rngs=rngs)
        self.norm = nnx.LayerNorm(config.width, rngs=rngs)
        self.head = layers.Dense(config.width, config.classes, axes=("embed", None), bias=True, rngs=rngs)

    def __call__(self, images, rng=None):
        """Returns logits `[batch, classes]` for images `[batch, size, size]` of 0..255."""
        side = images.shape[1] // self.patch
        x = images.astype(self.positions.get_value().dtype).reshape(-1, side, self.patch, side, self.patch) / 127.5 - 1
        x = x.swapaxes(2, 3).reshape(images.shape[0], side * side, -1)  # [batch, patches, pixels]
        x = layers.constrain(self.embed(x) + self.positions.get_value(), "batch", "tokens", None)
        return self.head(self.norm(self.stack(x, rng=rng)).mean(axis=1))


@dataclasses.dataclass
class Vit(Task):
    """Classifies the photographs of convoy_zoo.models.fashion_mnist as one of ten kinds of clothing."""

    size: int = 28  # pixels of a side
    patch: int = 4  # pixels of a side of a patch; divides the size
    width: int = 128
    depth: int = 6
    heads: int = 4
    classes: int = 10
    dropout: float = 0.0

    def __post_init__(self):
        for part, whole in (("patch", "size"), ("heads", "width")):
            if getattr(self, whole) % getattr(self, part):
                raise TaskError(
                    f"task.{part} = {getattr(self, part)} does not divide task.{whole} = {getattr(self, whole)}."
                )

    def build(self, rngs):
        return VisionTransformer(self, rngs)

    def loss(self, model, batch, rng):
        logits = model(batch["image"], rng).astype(jnp.float32)  # [batch, classes]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return Loss.of(losses, metrics={"accuracy": Mean.of(logits.argmax(-1) == batch["label"])})

    def predict(self, model, batch):
        logits = model(batch["image"]).astype(jnp.float32)
        return {"label": logits.argmax(-1), "probability": jnp.max(nnx.softmax(logits), axis=-1)}
