"""The train step compiled for 16 H100 in two hosts: kernels, collectives, dtypes of products, and memory."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.aot.measures import largest
from engine.compile.collectives import collectives
from engine.compile.options import compiler_options
from engine.config.schema import MeshSpec
from engine.parallel import targets
from engine.parallel.memory import check_host_memory, device_memory, in_host_memory
from engine.parallel.mesh import batch_sharding, make_mesh
from tests.aot.programs import (
    MESHES,
    STAGE_CALLS,
    TARGETS,
    attention_kernels,
    dense_gradient,
    dropless_flops,
    require,
    step,
)

require("gpu")


@pytest.mark.parametrize("name", MESHES)
def test_arguments_have_the_bytes_of_state_and_batch(name):
    found = step("gpu", name)
    assert found.measures.argument_bytes == pytest.approx(found.compiled.argument_bytes, rel=0.1)


@pytest.mark.parametrize("name", ["fsdp", "tensor", "experts"])
def test_attention_runs_in_the_kernels_of_cudnn(name):
    kernels, depth = step("gpu", name).measures.kernels, step("gpu", name).depth
    assert kernels["cudnn fwd"] == (2 * depth if name == "fsdp" else depth)  # remat=full runs it twice, dots once
    assert kernels["cudnn bwd"] == depth


@pytest.mark.parametrize(("causal", "segmented"), [(False, False), (True, False), (False, True)])
def test_attention_of_an_odd_length_and_its_gradient_run_in_cudnn(causal, segmented):
    found = attention_kernels("gpu", 49, causal=causal, segmented=segmented)
    assert found == {"cudnn fwd": 1, "cudnn bwd": 1}


def test_fsdp_gathers_each_layer_and_scatters_its_gradients_asynchronously():
    found = step("gpu", "fsdp")
    assert found.kinds("fsdp") == {"all-gather", "reduce-scatter", "all-reduce", "all-to-all"}
    assert found.of_layers("all-gather") and found.of_layers("reduce-scatter")
    assert all(c.asynchronous for c in found.collectives if c.count >= found.depth)
    # What is summed in full is small: losses, norms and their gradients.
    assert sum(c.bytes for c in found.collectives if c.kind == "all-reduce") < 1e5


def test_dropless_experts_execute_little_more_than_the_products_of_the_chosen_experts():
    assert 1 <= dropless_flops("gpu", expert=4) <= 1.3


@pytest.mark.parametrize("name", ["fsdp", "tensor"])
def test_a_decoder_has_no_product_of_float32(name):
    products = step("gpu", name).measures.products
    assert not [dtypes for dtypes in products if "f32 x" in dtypes or "x f32" in dtypes]


def test_experts_exchange_tokens_over_their_axis_alone():
    found = step("gpu", "experts")
    assert {c.axes for c in found.of_layers("all-to-all")} == {("expert",)}


def test_tensor_parallel_layers_have_no_all_to_all_and_gather_norms_in_half_precision():
    found = step("gpu", "tensor")
    assert not [c for c in found.collectives if c.kind == "all-to-all" and c.axes == ("tensor",)]
    gathered = [c for c in found.collectives if c.kind == "all-gather" and c.axes == ("tensor",)]
    assert gathered and not [c for c in gathered if "f32[" in c.shape]


def test_offloaded_arrays_of_absent_devices_are_in_host_memory():
    mesh = make_mesh(MeshSpec(), targets.devices(TARGETS["gpu"]))
    check_host_memory(mesh, "train.offload_optimizer")
    there = in_host_memory(batch_sharding(mesh))
    here = there.with_memory_kind(device_memory(mesh))

    def step(state, batch):
        return jax.device_put(jax.device_put(state, here) + batch, there)

    shardings = (there, batch_sharding(mesh))
    state, batch = (jax.ShapeDtypeStruct((64, 1024), jnp.float32, sharding=sharding) for sharding in shardings)
    memory = jax.jit(step, out_shardings=there, donate_argnums=0).lower(state, batch).compile().memory_analysis()
    assert memory is not None
    assert memory.host_argument_size_in_bytes == memory.host_output_size_in_bytes == 64 * 1024 * 4 // 16
    assert memory.argument_size_in_bytes == 64 * 1024 * 4 // 16


def test_products_of_float8_and_int8_run_in_eight_bits():
    """Tuning on a device chooses a kernel of Triton or of cuBLASLt; without a device this option does.

    float8 is compiled for cuBLASLt, whose calls XLA makes from a pattern of the program, int8 for Triton.
    """
    float8 = dense_gradient("gpu", "float8", xla_gpu_enable_triton_gemm=False).products
    assert {name.partition(" -> ")[0]: times for name, times in float8.items()} == {
        "f8e4m3fn x f8e4m3fn": 2,
        "f8e5m2 x f8e4m3fn": 2,
        "f8e4m3fn x f8e5m2": 2,
    }
    int8 = dense_gradient("gpu", "int8", xla_gpu_enable_triton_gemm=True).products
    assert int8["s8 x s8 -> s32"] == 4 and sum(int8.values()) == 6  # the gradients of the kernels are in bfloat16


def test_weight_gradients_of_a_large_layer_are_reduced_one_by_one():
    mesh = make_mesh(MeshSpec(fsdp=8), targets.devices(TARGETS["gpu"])[:8])
    weights, rows = jax.NamedSharding(mesh, jax.P(None, "fsdp")), batch_sharding(mesh)

    def loss(params, x):
        def layer(x, kernels):
            up, down = kernels
            return jax.lax.with_sharding_constraint(x + jax.nn.silu(x @ up) @ down, rows), None

        y, _ = jax.lax.scan(jax.checkpoint(layer, prevent_cse=False), x, params)
        return (y.astype(jnp.float32) ** 2).mean()

    shapes = ((4, 2048, 4096), (4, 4096, 2048))
    params = tuple(jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=weights) for shape in shapes)
    x = jax.ShapeDtypeStruct((32, 2048, 2048), jnp.bfloat16, sharding=rows)
    lowered = jax.jit(jax.grad(loss), out_shardings=(weights, weights)).lower(params, x)
    compiled = lowered.compile(compiler_options=compiler_options("gpu", {}))
    found = [c for c in collectives(str(compiled.as_text()), mesh) if c.kind == "reduce-scatter"]
    assert len(found) == 2 and all(c.asynchronous for c in found)


def test_rings_of_a_pipeline_run_in_cudnn_kernels():
    kernels = step("gpu", "pipeline").measures.kernels
    # A layer attends to its own keys and to the received ones, with two backward kernels each; see layers/part.py.
    assert kernels["cudnn bwd"] == 4 * STAGE_CALLS and kernels["cudnn fwd"] >= 4 * STAGE_CALLS


def test_a_pipeline_holds_no_array_of_half_the_global_batch():
    found = step("gpu", "pipeline")
    assert not largest(found.text, found.activations // 2)
    assert found.kinds("pipeline") >= {"collective-permute"} and "all-gather" not in found.kinds("pipeline")
