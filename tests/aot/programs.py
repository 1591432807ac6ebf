"""Tiny train steps, compiled once for devices that are absent, and what a test asks of them."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from benchmarks.aot.measures import Measures, kernels, measure, product_flops
from benchmarks.aot.programs import SIZES, Compiled, Job, compile_engine
from engine.compile.collectives import Collective, collectives
from engine.compile.hlo_text import HloText
from engine.config.schema import MeshSpec
from engine.layers import Dense, Experts
from engine.layers.kernels import attend
from engine.parallel import targets
from engine.parallel.layout import Layout, active
from engine.parallel.mesh import batch_sharding, make_mesh
from engine.parallel.rules import RULES, partition_spec

TARGETS = {"tpu": "v5e:4x4", "gpu": "h100:2x8"}
ROWS, TIME = 32, 256
FULL, DOTS = {"train.remat": "full"}, {"train.remat": "dots"}
MESHES = {
    "fsdp": ({"fsdp": 16}, "tiny", FULL),
    "tensor": ({"fsdp": 8, "tensor": 2}, "tiny", DOTS),
    "pipeline": ({"fsdp": 4, "pipeline": 2, "context": 2}, "tiny", FULL),
    "experts": ({"fsdp": 4, "expert": 4}, "moe-tiny", {}),
}
"""Program -> mesh, model and settings."""
STAGE_CALLS = 5 * 2
"""Calls of a layer in a stage of the pipeline: four microbatches in five ticks, and half of the four layers."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled train step and what its text says."""

    compiled: Compiled
    text: HloText
    collectives: list[Collective]
    measures: Measures
    depth: int
    activations: int  # elements of the activations of the global batch

    def kinds(self, *axes: str) -> set[str]:
        """Returns the kinds of the collectives along exactly these mesh axes."""
        return {c.kind for c in self.collectives if c.axes == axes}

    def of_layers(self, kind: str) -> list[Collective]:
        """Returns the collectives of a kind that run once for each layer, or more often."""
        return [c for c in self.collectives if c.kind == kind and c.count >= self.depth]


def require(platform: str) -> None:
    """Skips the tests of a module where the compiler of a platform is not installed. CI has it."""
    if missing := targets.missing(platform):
        if os.environ.get("CI"):
            pytest.fail(f"{missing} is missing: install the extra aot", pytrace=False)
        pytest.skip(f"compiling for a {platform} needs {missing}, of the extra aot", allow_module_level=True)


@functools.cache
def step(platform: str, name: str) -> Step:
    """Returns a program of MESHES for the devices of a platform."""
    mesh, model, settings = MESHES[name]
    # Over a pipeline with context, each chunk of a sequence is long enough for splash attention.
    rows, time = (2 * ROWS, 2 * TIME) if "pipeline" in mesh else (ROWS, TIME)
    job = Job(TARGETS[platform], model, mesh, batch=rows, time=time, settings=settings)
    compiled = compile_engine(job, targets.devices(job.target))
    text = str(compiled.executable.as_text())
    return Step(
        compiled,
        HloText.parse(text),
        collectives(text, compiled.mesh),
        measure(compiled.executable, compiled.mesh),
        SIZES[model]["depth"],
        rows * time * SIZES[model]["width"],
    )


def compile_function(platform: str, function: Callable, *arrays: jax.ShapeDtypeStruct) -> jax.stages.Compiled:
    """Compiles a function of arrays for one device of a platform."""
    here = jax.sharding.SingleDeviceSharding(targets.devices(TARGETS[platform])[0])
    return jax.jit(function, in_shardings=here, out_shardings=here).lower(*arrays).compile()


def attention_kernels(platform: str, time: int, *, causal: bool, segmented: bool) -> Mapping[str, int]:
    """Returns the kernels of attention and its gradient in bfloat16."""

    def loss(q, k, v, ids):
        return (
            attend(platform, q, k, v, causal=causal, segment_ids=ids if segmented else None).astype(jnp.float32).sum()
        )

    x, ids = jax.ShapeDtypeStruct((2, time, 2, 64), jnp.bfloat16), jax.ShapeDtypeStruct((2, time), jnp.int32)
    compiled = compile_function(platform, jax.grad(loss, argnums=(0, 1, 2)), x, x, x, ids)
    return kernels(HloText.parse(str(compiled.as_text())))


def dropless_flops(platform: str, expert: int) -> float:
    """Returns the FLOPs of dropless experts and their gradient over those of the chosen experts alone."""
    rows, time, features, hidden, count, top_k = 32, 512, 128, 256, 8, 2
    mesh = make_mesh(MeshSpec(expert=expert), targets.devices(TARGETS[platform])[:expert])
    experts = nnx.eval_shape(lambda: Experts(features, hidden, count, top_k, capacity_factor=None, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(experts)

    def struct(path, variable):
        value, axes = variable.get_value(), variable.get_metadata()["logical_axes"]
        spec = partition_spec(path[-1], value.shape, axes, RULES, mesh)
        return jax.ShapeDtypeStruct(value.shape, jnp.bfloat16, sharding=jax.NamedSharding(mesh, spec))

    params = {path: struct(path, variable) for path, variable in nnx.to_flat_state(state)}
    x = jax.ShapeDtypeStruct((rows, time, features), jnp.bfloat16, sharding=batch_sharding(mesh))

    def loss(params, x):
        return nnx.merge(graph, nnx.traversals.unflatten_mapping(params))(x)[0].astype(jnp.float32).sum()

    with active(Layout(mesh=mesh)):
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, x).compile()
    useful = 3 * 3 * 2 * rows * time * top_k * features * hidden / expert
    return product_flops(HloText.parse(str(compiled.as_text()))) / useful


@functools.cache
def dense_gradient(platform: str, precision: str, **options: object) -> Measures:
    """Returns the measures of the gradient of two layers whose kernels are split over all devices.

    Args:
        platform: key of TARGETS.
        precision: `train.precision`.
        **options: options of the XLA compiler.
    """
    mesh = make_mesh(MeshSpec(fsdp=-1), targets.devices(TARGETS[platform]))
    graph, params = nnx.split(
        nnx.eval_shape(lambda: nnx.List([Dense(512, 512, axes=("embed", "mlp"), rngs=nnx.Rngs(0)) for _ in range(2)]))
    )
    split = jax.NamedSharding(mesh, jax.P("fsdp"))

    def loss(params: nnx.State, x: jax.Array) -> jax.Array:
        for layer in nnx.merge(graph, jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)):
            x = jnp.tanh(layer(x))
        return x.astype(jnp.float32).sum()

    def placed(a: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=split)

    x = placed(jax.ShapeDtypeStruct((ROWS, TIME, 512), jnp.bfloat16))
    with active(Layout(mesh=mesh, precision=precision)):
        traced = jax.jit(jax.grad(loss, (0, 1))).trace(jax.tree.map(placed, params), x)
    return measure(traced.lower().compile(compiler_options=dict(options)), mesh)
