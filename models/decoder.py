"""A modern decoder-only transformer (Vaswani et al. 2017) and language modelling as a Task.

It has pre-layer RMSNorm (Zhang and Sennrich 2019), rotary positions (Su et al. 2021), SwiGLU (Shazeer 2020) and
grouped-query attention (Ainslie et al. 2023). Batches are packed rows of `engine.Packed`.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from engine import Loss, Task, TaskError, layers

from .attention import whole_rows


class Attention(nnx.Module):
    """Causal self-attention within the documents of a row."""

    def __init__(self, width: int, heads: int, kv_heads: int, rngs: nnx.Rngs):
        self.head_dim = width // heads
        self.query = layers.Dense(width, heads * self.head_dim, axes=("embed", "heads"), rngs=rngs)
        self.key = layers.Dense(width, kv_heads * self.head_dim, axes=("embed", "kv_heads"), rngs=rngs)
        self.value = layers.Dense(width, kv_heads * self.head_dim, axes=("embed", "kv_heads"), rngs=rngs)
        self.out = layers.Dense(heads * self.head_dim, width, axes=("heads", "embed"), rngs=rngs)

    def __call__(self, x, angles, segments):
        """Returns `[batch, time, width]` for `x` of that shape, rotary angles, and segment ids `[batch, time]`."""
        heads = (*x.shape[:2], -1, self.head_dim)  # [batch, time, heads, head_dim]
        q, k, v = (y.reshape(heads) for y in layers.project(x, self.query, self.key, self.value))
        q, k = layers.rotate(q, angles), layers.rotate(k, angles)
        return self.out(layers.attention(q, k, v, causal=True, segment_ids=segments).reshape(x.shape))


class SwiGLU(nnx.Module):
    """A gated feed-forward layer (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int, rngs: nnx.Rngs):
        self.gate = layers.Dense(width, hidden, axes=("embed", "mlp"), rngs=rngs)
        self.up = layers.Dense(width, hidden, axes=("embed", "mlp"), rngs=rngs)
        self.down = layers.Dense(hidden, width, axes=("mlp", "embed"), rngs=rngs)

    def __call__(self, x):
        """Returns `[batch, time, width]` for `x` of that shape."""
        hidden = ("batch", "sequence", "mlp")  # without it XLA splits the gradients of these arrays in another way
        gate, up = (layers.constrain(y, *hidden) for y in layers.project(x, self.gate, self.up))
        return self.down(layers.constrain(layers.swiglu(gate, up), *hidden))


class Block(nnx.Module):
    """One layer: attention and a feed-forward part, each with a residual connection."""

    auxiliary: ClassVar[tuple[str, ...]] = ()  # names of sums `[batch]` that the layers accumulate

    def __init__(self, config: "LanguageModel", rngs: nnx.Rngs):
        self.norms = nnx.List([layers.RMSNorm(config.width) for _ in range(2)])
        self.attention = Attention(config.width, config.heads, config.kv_heads or config.heads, rngs)
        self.feed_forward = self.make_feed_forward(config, rngs)
        self.dropout = layers.Dropout(config.dropout)

    def make_feed_forward(self, config, rngs: nnx.Rngs) -> nnx.Module:
        """Returns the feed-forward part of the layer."""
        return SwiGLU(config.width, config.hidden, rngs)

    def __call__(self, carry, angles, segments, weight, rng):
        """Returns the carry: "x" `[batch, time, width]` and the auxiliary sums."""
        y = whole_rows(self.norms[0](carry["x"]))
        y = layers.checkpoint(self.attention(y, angles, segments), "attention")
        x = layers.constrain(carry["x"] + self.dropout(y, layers.fold_in(rng, 0)), "batch", "tokens", None)
        y = whole_rows(self.norms[1](x))
        y, auxiliary = self.feed(y, weight)
        x = layers.constrain(x + self.dropout(y, layers.fold_in(rng, 1)), "batch", "tokens", None)
        return {"x": x, **{name: carry[name] + auxiliary[name] for name in self.auxiliary}}

    def feed(self, x, weight):
        """Returns the result of the feed-forward part and its auxiliary sums."""
        return self.feed_forward(x), {}


class Decoder(nnx.Module):
    """Embedding, a stack of layers and a norm; the last product is part of the loss."""

    def __init__(self, config: "LanguageModel", block: type[Block], rngs: nnx.Rngs):
        self.head_dim, self.auxiliary = config.width // config.heads, block.auxiliary
        self.embed = layers.Embed(config.vocabulary, config.width, rngs=rngs)
        self.stack = layers.Stack(lambda rngs: block(config, rngs), config.depth, rngs=rngs)
        self.norm = layers.RMSNorm(config.width)
        head = ("embed", "vocab")
        self.head = None if config.tied else layers.Dense(config.width, config.vocabulary, axes=head, rngs=rngs)

    def __call__(self, batch, rng):
        """Returns -log p(target) `[batch, time]` for packed rows, and the auxiliary sums `[batch]` by name."""
        x = layers.constrain(self.embed(batch["tokens"]), "batch", "tokens", None)
        carry = {"x": x, **{name: jnp.zeros(len(x)) for name in self.auxiliary}}
        angles = layers.rotary_angles(batch["positions"], self.head_dim)
        carry = self.stack(carry, angles, batch["segment_ids"], batch["weight"], rng=rng)
        x = whole_rows(self.norm(carry.pop("x")))
        kernel = self.embed.kernel if self.head is None else self.head.kernel.get_value()
        return layers.cross_entropy(x, kernel, batch["targets"]), carry


@dataclasses.dataclass
class LanguageModel(Task):
    """Predicts each token of a document from the tokens before it."""

    full_precision: ClassVar[tuple[str, ...]] = ("weight",)

    vocabulary: int = 256
    width: int = 256
    hidden: int = 1024
    depth: int = 4
    heads: int = 8
    kv_heads: int | None = None  # None: equal to heads
    tied: bool = False  # use the embedding as the kernel of the last product
    dropout: float = 0.0

    def __post_init__(self):
        if self.width % (2 * self.heads):
            raise TaskError(
                f"task.heads = {self.heads}: task.width = {self.width} must be a multiple of {2 * self.heads}, since "
                "rotary positions need heads of even size."
            )

    def build(self, rngs):
        return Decoder(self, Block, rngs)

    def loss(self, model, batch, rng):
        losses, _ = model(batch, rng)
        return Loss.of(losses, batch["weight"])
