"""A modern decoder-only transformer (Vaswani et al. 2017) and language modelling as a Task.

It has pre-layer RMSNorm (Zhang and Sennrich 2019), rotary positions (Su et al. 2021), SwiGLU (Shazeer 2020) and
grouped-query attention (Ainslie et al. 2023). Batches are packed rows of `engine.Packed`. Llama 3 and Qwen 3 have this
form: `language_sizes.py` has their sizes, and `Decoder.pretrained` their names in transformers.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from engine import Loss, Task, TaskError, exported, hub, layers

from .attention import whole_rows


class Attention(nnx.Module):
    """Causal self-attention within the documents of a row."""

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        rngs: nnx.Rngs,
        *,
        head_dim: int | None = None,
        qk_norm: bool = False,
        epsilon: float = 1e-6,
    ):
        self.head_dim = head_dim or width // heads
        self.query = layers.Dense(width, heads * self.head_dim, axes=("embed", "heads"), rngs=rngs)
        self.key = layers.Dense(width, kv_heads * self.head_dim, axes=("embed", "kv_heads"), rngs=rngs)
        self.value = layers.Dense(width, kv_heads * self.head_dim, axes=("embed", "kv_heads"), rngs=rngs)
        self.out = layers.Dense(heads * self.head_dim, width, axes=("heads", "embed"), rngs=rngs)
        self.query_norm = layers.RMSNorm(self.head_dim, epsilon=epsilon) if qk_norm else None
        self.key_norm = layers.RMSNorm(self.head_dim, epsilon=epsilon) if qk_norm else None

    def __call__(self, x, angles, segments):
        """Returns `[batch, time, width]` for `x` of that shape, rotary angles, and segment ids `[batch, time]`."""
        heads = (*x.shape[:2], -1, self.head_dim)  # [batch, time, heads, head_dim]
        q, k, v = (y.reshape(heads) for y in layers.project(x, self.query, self.key, self.value))
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k = layers.rotate(q, angles), layers.rotate(k, angles)
        found = layers.attention(q, k, v, causal=True, segment_ids=segments)
        return self.out(found.reshape(*x.shape[:2], -1))


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
        epsilon = config.norm_epsilon
        self.norms = nnx.List([layers.RMSNorm(config.width, epsilon=epsilon) for _ in range(2)])
        sizes = (config.width, config.heads, config.kv_heads or config.heads)
        self.attention = Attention(*sizes, rngs, head_dim=config.head_dim, qk_norm=config.qk_norm, epsilon=epsilon)
        self.feed_forward = self.make_feed_forward(config, rngs)
        self.dropout = layers.Dropout(config.dropout)
        self.branch_scale = (config.base_depth or config.depth) / config.depth

    def make_feed_forward(self, config, rngs: nnx.Rngs) -> nnx.Module:
        """Returns the feed-forward part of the layer."""
        return SwiGLU(config.width, config.hidden, rngs)

    def __call__(self, carry, angles, segments, weight, rng):
        """Returns the carry: "x" `[batch, time, width]` and the auxiliary sums."""
        y = whole_rows(self.norms[0](carry["x"]))
        y = layers.checkpoint(self.attention(y, angles, segments), "attention")
        x = layers.constrain(carry["x"] + self.branch(self.dropout(y, layers.fold_in(rng, 0))), "batch", "tokens", None)
        y = whole_rows(self.norms[1](x))
        y, auxiliary = self.feed(y, weight)
        x = layers.constrain(x + self.branch(self.dropout(y, layers.fold_in(rng, 1))), "batch", "tokens", None)
        return {"x": x, **{name: carry[name] + auxiliary[name] for name in self.auxiliary}}

    def branch(self, y):
        """Returns the result of a residual branch, times base depth / depth (Dey et al. 2025)."""
        return y if self.branch_scale == 1 else y * jnp.asarray(self.branch_scale, y.dtype)

    def feed(self, x, weight):
        """Returns the result of the feed-forward part and its auxiliary sums."""
        return self.feed_forward(x), {}


class Decoder(nnx.Module):
    """Embedding, a stack of layers and a norm; the last product is part of the loss."""

    pretrained: ClassVar = hub.Names(
        {
            "embed": "model.embed_tokens",
            "stack/layers/norms/0": "model.layers.{layer}.input_layernorm",
            "stack/layers/norms/1": "model.layers.{layer}.post_attention_layernorm",
            "stack/layers/attention/query": "model.layers.{layer}.self_attn.q_proj",
            "stack/layers/attention/key": "model.layers.{layer}.self_attn.k_proj",
            "stack/layers/attention/value": "model.layers.{layer}.self_attn.v_proj",
            "stack/layers/attention/out": "model.layers.{layer}.self_attn.o_proj",
            "stack/layers/attention/query_norm": "model.layers.{layer}.self_attn.q_norm",
            "stack/layers/attention/key_norm": "model.layers.{layer}.self_attn.k_norm",
            r"stack/layers/feed_forward/(gate|up|down)": r"model.layers.{layer}.mlp.\1_proj",
            "norm": "model.norm",
            "head": "lm_head",
        },
    )

    def __init__(self, config: "LanguageModel", block: type[Block], rngs: nnx.Rngs):
        self.auxiliary, self.head_dim = block.auxiliary, config.head_dim or config.width // config.heads
        self.rope_theta, self.rope_scaling = config.rope_theta, config.rope_scaling
        self.embed = layers.Embed(config.vocabulary, config.width, rngs=rngs)
        self.stack = layers.Stack(lambda rngs: block(config, rngs), config.depth, rngs=rngs)
        self.norm = layers.RMSNorm(config.width, epsilon=config.norm_epsilon)
        head = ("embed", "vocab")
        self.head = None if config.tied else layers.Dense(config.width, config.vocabulary, axes=head, rngs=rngs)

    def __call__(self, batch, rng):
        """Returns -log p(target) `[batch, time]` for packed rows, and the auxiliary sums `[batch]` by name."""
        x, auxiliary = self.features(batch, rng)
        return layers.cross_entropy(x, self.kernel, batch["targets"]), auxiliary

    def features(self, batch, rng):
        """Returns `[batch, time, width]`, whose product with the kernel is logits, and the auxiliary sums `[batch]`."""
        x = layers.constrain(self.embed(batch["tokens"]), "batch", "tokens", None)
        carry = {"x": x, **{name: jnp.zeros(x.shape[0]) for name in self.auxiliary}}
        angles = layers.rotary_angles(batch["positions"], self.head_dim, self.rope_theta, self.rope_scaling)
        carry = self.stack(carry, angles, batch["segment_ids"], batch["weight"], rng=rng)
        return whole_rows(self.norm(carry.pop("x"))), carry

    @property
    def kernel(self):
        """The kernel of the last product, `[width, vocabulary]`."""
        return self.embed.kernel if self.head is None else self.head.kernel.get_value()


def _two_texts(task: "LanguageModel"):
    """Returns two short texts, as example inputs of an entry point."""
    return {"tokens": np.arange(24, dtype=np.int32).reshape(2, 12) % task.vocabulary}


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
    head_dim: int | None = None  # None: width / heads
    qk_norm: bool = False  # normalise the queries and keys of each head, as in Qwen 3
    norm_epsilon: float = 1e-6
    rope_theta: float = 10_000.0  # pair i of n turns by rope_theta ** (-i / n) for each position
    rope_scaling: layers.RotaryScaling | None = None
    base_depth: int | None = None  # depth whose learning rate this is: branches are multiplied by base_depth / depth

    def __post_init__(self):
        if not isinstance(self.rope_scaling, layers.RotaryScaling | None):
            raise TaskError(
                f"task.rope_scaling: found {self.rope_scaling!r}. Allowed: None, or a dictionary with the target "
                "'engine.layers.RotaryScaling' and its arguments."
            )
        if self.head_dim is None and self.width % (2 * self.heads):
            raise TaskError(
                f"task.heads = {self.heads}: task.width = {self.width} must be a multiple of {2 * self.heads}, since "
                "rotary positions need heads of even size."
            )

    def build(self, rngs):
        return Decoder(self, Block, rngs)

    def loss(self, model, batch, rng):
        losses, _ = model(batch, rng)
        return Loss.of(losses, batch["weight"])

    @exported(inputs=_two_texts, shapes={"tokens": "batch, length"})
    def next_tokens(self, model, batch):
        """Returns the logits of the token after each token of a text, `[batch, length, vocabulary]`."""
        tokens = batch["tokens"]  # [batch, length]
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        whole = {"positions": positions, "segment_ids": jnp.ones_like(tokens), "weight": jnp.ones(tokens.shape)}
        features, _ = model.features({"tokens": tokens, **whole}, None)
        return {"logits": jnp.dot(features, model.kernel, preferred_element_type=jnp.float32)}

    def config_json(self):
        """Returns the text of the config.json with which transformers loads an exported model."""
        from .language_sizes import config_json

        return config_json(self)
