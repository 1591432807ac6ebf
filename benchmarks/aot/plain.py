"""The decoder of `models/decoder.py` and its train step as one jit in hand-written JAX, split by shardings alone.

It scans over the layers and recomputes each of them in the backward pass, with bfloat16 products of float32 weights and
the attention kernels of the engine. XLA alone chooses the collectives.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.aot.programs import SIZES, Compiled, Job
from engine.base.types import Device
from engine.config.schema import MeshSpec
from engine.layers import kernels
from engine.parallel.memory import device_bytes
from engine.parallel.mesh import make_mesh

CHUNKS = 2  # chunks of the logits
LAYER: Mapping[str, P] = {
    "query": P(None, "fsdp", "tensor"),
    "key": P(None, "fsdp", "tensor"),
    "value": P(None, "fsdp", "tensor"),
    "out": P(None, "tensor", "fsdp"),
    "gate": P(None, "fsdp", "tensor"),
    "up": P(None, "fsdp", "tensor"),
    "down": P(None, "tensor", "fsdp"),
    "norm1": P(),
    "norm2": P(),
}
SPECS: Mapping[str, P] = {"embed": P("tensor", "fsdp"), "head": P("fsdp", "tensor"), "norm": P(), **LAYER}
ROWS = P(("data", "fsdp"))


def compile_plain(job: Job, devices: Sequence[Device]) -> Compiled:
    """Compiles one step for these devices, with the mesh axes data, fsdp and tensor of the job."""
    axes: dict[str, Any] = dict(job.mesh)
    mesh = make_mesh(MeshSpec(**axes), devices)
    decoder = _Decoder(job, mesh)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=0.1))

    def step(params, state, batch):
        value, gradient = jax.value_and_grad(decoder.loss)(params, batch)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    shardings = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    everywhere = NamedSharding(mesh, P())
    params = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=shardings[name])
        for name, shape in _shapes(job.model).items()
    }
    shapes = jax.eval_shape(tx.init, params)
    state_shardings = optax.tree_utils.tree_map_params(
        tx, lambda _, s: s, shapes, shardings, transform_non_params=lambda _: everywhere
    )
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, state_shardings)
    ids = jax.ShapeDtypeStruct((job.batch, job.time), jnp.int32, sharding=NamedSharding(mesh, ROWS))
    batch = dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), ids)
    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=(shardings, state_shardings, everywhere))
    return Compiled(
        jitted.lower(params, state, batch).compile(compiler_options=dict(job.options) or None),
        mesh,
        sum(map(device_bytes, jax.tree.leaves((params, state, batch)))),
        sum(x.size for x in params.values()),
    )


class _Decoder:
    """The loss of the decoder on a mesh."""

    def __init__(self, job: Job, mesh: Mesh):
        self.mesh, self.sizes, self.platform = mesh, SIZES[job.model], mesh.devices.flat[0].platform
        self.head_dim = self.sizes["width"] // self.sizes["heads"]

    def loss(self, params, batch):
        """Returns the mean loss."""
        params = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
        frequencies = 10_000.0 ** (-jnp.arange(0, self.head_dim, 2) / self.head_dim)
        angles = batch["positions"][..., None, None] * frequencies
        cos, sin = jnp.cos(angles), jnp.sin(angles)

        def layer(x, w):
            return self.layer(x, w, cos, sin, batch["segment_ids"]), None

        recomputed = jax.checkpoint(layer, policy=jax.checkpoint_policies.nothing_saveable, prevent_cse=False)
        x = self.split(params["embed"][batch["tokens"]], *ROWS)
        x, _ = jax.lax.scan(recomputed, x, {name: params[name] for name in LAYER})
        x = norm(x, params["norm"])

        def part(n):
            rows = x.reshape(len(x), -1, CHUNKS, x.shape[-1])[:, :, n]
            targets = batch["targets"].reshape(len(x), -1, CHUNKS)[:, :, n]
            logits = jnp.matmul(rows, params["head"], preferred_element_type=jnp.float32)
            chosen = jnp.arange(logits.shape[-1]) == targets[..., None]
            return (jax.nn.logsumexp(logits, -1) - jnp.where(chosen, logits, 0).sum(-1)).sum()

        return jax.lax.map(jax.checkpoint(part), jnp.arange(CHUNKS)).sum() / batch["tokens"].size

    def layer(self, x, w, cos, sin, segments):
        """Attention and SwiGLU."""
        heads = (*x.shape[:2], -1, self.head_dim)
        y = norm(x, w["norm1"])
        q, k, v = ((y @ w[name]).reshape(heads) for name in ("query", "key", "value"))
        y = self.attention(rotate(q, cos, sin), rotate(k, cos, sin), v, segments)
        x = self.split(x + y.reshape(x.shape) @ w["out"], *ROWS)
        y = norm(x, w["norm2"])
        return self.split(x + (jax.nn.silu(y @ w["gate"]) * (y @ w["up"])) @ w["down"], *ROWS)

    def attention(self, q, k, v, segments):
        """The kernel on the rows and heads of each device."""

        def local(q, k, v, segments):
            return kernels.attend(self.platform, q, k, v, causal=True, segment_ids=segments)

        spec = P(*ROWS, None, "tensor", None)
        split = jax.shard_map(local, mesh=self.mesh, in_specs=(spec, spec, spec, ROWS), out_specs=spec, check_vma=False)
        return split(q, k, v, segments)

    def split(self, x, *spec):
        """Returns `x` with this sharding."""
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, P(*spec)))


def norm(x, scale):
    """RMSNorm in float32."""
    y = x.astype(jnp.float32)
    return (y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + 1e-6) * scale.astype(jnp.float32)).astype(x.dtype)


def rotate(x, cos, sin):
    """Rotary positions in float32."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def _shapes(model: str) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the weights."""
    width, hidden, depth, vocabulary = (SIZES[model][name] for name in ("width", "hidden", "depth", "vocabulary"))
    return {
        "embed": (vocabulary, width),
        "head": (width, vocabulary),
        "norm": (width,),
        **dict.fromkeys(("query", "key", "value", "out"), (depth, width, width)),
        **dict.fromkeys(("gate", "up"), (depth, width, hidden)),
        "down": (depth, hidden, width),
        **dict.fromkeys(("norm1", "norm2"), (depth, width)),
    }
