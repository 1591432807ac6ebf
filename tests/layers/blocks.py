"""A small transformer-like layer, and helpers that run a stack of such layers on a mesh."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from engine.config.schema import MeshSpec
from engine.layers import Dense, Dropout, Stack, checkpoint, constrain
from engine.parallel.layout import Layout, active
from engine.parallel.mesh import make_mesh
from tests import zoo

TIME, WIDTH, HIDDEN = 4, 8, 16


class LikeTpu(Layout):
    """A layout of CPU devices for which layers choose what they choose on TPUs."""

    platform = "tpu"  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]


class Block(nnx.Module):
    """Mixes positions by a mask, then applies a hidden layer; the carry is (activations, a sum for each row)."""

    def __init__(self, rngs: nnx.Rngs, dropout: float = 0.0):
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)  # parameters without logical axes
        self.up = Dense(WIDTH, HIDDEN, axes=("embed", "mlp"), bias=True, rngs=rngs)
        self.down = Dense(HIDDEN, WIDTH, axes=("mlp", "embed"), rngs=rngs)
        self.dropout = Dropout(dropout)

    def __call__(self, carry: Any, mask: jax.Array, rng: jax.Array | None) -> Any:
        x, total = carry
        scores = jnp.where(mask[:, None], 0.0, -1e9).astype(x.dtype)
        mixed = jnp.einsum("bts,bsd->btd", jax.nn.softmax(scores), self.norm(x))
        hidden = nnx.gelu(checkpoint(constrain(self.up(mixed), "batch", None, "mlp"), "hidden"))
        x = constrain(x + self.dropout(self.down(hidden), rng), "batch", None, None)
        return x, total + jnp.square(hidden).mean((1, 2))


def make_layout(mesh: MeshSpec | None, **fields: Any) -> Layout:
    """Returns the layout of a mesh over all devices, or of one device."""
    return Layout(**fields) if mesh is None else Layout(mesh=make_mesh(mesh), **fields)


def stack(count: int, where: Layout, dropout: float = 0.0, **arguments: Any) -> Stack:
    """Returns a stack of blocks from seed 0; scanned by default, which compiles faster."""
    arguments = {"unroll": False, **arguments}
    with active(where):
        return Stack(functools.partial(Block, dropout=dropout), count, rngs=nnx.Rngs(0), **arguments)


def batch(rows: int, dtype: Any = jnp.float32) -> tuple[Any, jax.Array, jax.Array]:
    """Returns a carry, a mask `[rows, time]` and keys `[rows]`."""
    x = jax.random.normal(jax.random.key(1), (rows, TIME, WIDTH)).astype(dtype)
    mask = np.arange(TIME) <= np.arange(rows)[:, None] % TIME
    return (x, jnp.zeros(rows, dtype)), jnp.asarray(mask), jax.random.split(jax.random.key(2), rows)


def gradient(module: Stack, where: Layout) -> Any:
    """Returns the jitted `(params, carry, mask, keys) -> ((loss, carry), (d_params, d_carry))`, and the params."""
    graph, params = nnx.split(module)
    leaves, tree = jax.tree.flatten(params)

    def loss(leaves: Any, carry: Any, mask: jax.Array, keys: jax.Array | None) -> Any:
        with active(where):
            x, total = nnx.merge(graph, jax.tree.unflatten(tree, leaves))(carry, mask, rng=keys)
        return jnp.sin(x.astype(jnp.float32)).mean() + total.astype(jnp.float32).mean(), (x, total)

    # XLA's optimizations as usual, but none by LLVM, so that it compiles faster.
    quick = {"xla_backend_optimization_level": 0}
    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), compiler_options=quick), leaves


class Deep(nnx.Module):
    """A classifier with a stack."""

    def __init__(self, count: int, rngs: nnx.Rngs):
        self.stem = nnx.Linear(zoo.SIZE, TIME * WIDTH, rngs=rngs)
        self.decoder = Stack(Block, count, rngs=rngs)

    def __call__(self, x, rng=None):
        x = self.stem(x).reshape(-1, TIME, WIDTH)
        return self.decoder((x, x[:, 0, 0]), x[..., 0] > 0, rng=rng)[0][:, 0, :4]


@dataclasses.dataclass
class Classify(zoo.Classify):
    """Classifies through a stack of layers."""

    layers: int = 4

    def build(self, rngs):
        return Deep(self.layers, rngs)
