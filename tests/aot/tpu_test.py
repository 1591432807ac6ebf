"""The train step compiled for 16 TPU v5e: kernels, collectives, dtypes of products, and memory."""

import pytest

from benchmarks.aot.measures import largest
from benchmarks.aot.programs import SIZES
from engine.config.schema import MeshSpec
from engine.parallel import targets
from engine.parallel.mesh import make_mesh
from tests.aot.programs import MESHES, STAGE_CALLS, attention_kernels, dense_gradient, require, step

require("tpu")


@pytest.mark.parametrize("name", MESHES)
def test_arguments_have_the_bytes_of_state_and_batch(name):
    found = step("tpu", name)
    assert found.measures.argument_bytes == pytest.approx(found.compiled.argument_bytes, rel=0.1)


@pytest.mark.parametrize("name", ["fsdp", "tensor", "experts"])
def test_attention_runs_in_splash_kernels(name):
    kernels = step("tpu", name).measures.kernels
    depth = step("tpu", name).depth
    assert kernels["splash fwd"] == (2 * depth if name == "fsdp" else depth)  # remat=full runs it twice, dots once
    assert kernels["splash dq"] == kernels["splash dkv"] == depth


def test_attention_of_196_positions_and_its_gradient_run_in_splash_kernels():
    found = attention_kernels("tpu", 196, causal=False, segmented=False)
    assert found == {"splash fwd": 1, "splash dq": 1, "splash dkv": 1}


def test_loops_without_a_trip_count_in_the_text_are_multiplied_out():
    found = step("tpu", "fsdp")
    assert all(c.exact for c in found.collectives)
    assert found.text.runs and max(found.text.runs.values()) >= found.depth / 2  # two layers in an iteration
    assert found.measures.cycles > 0


def test_fsdp_sums_the_gradients_of_weights_by_asynchronous_exchanges():
    found = step("tpu", "fsdp")
    assert found.kinds("fsdp") == {"all-gather", "all-reduce", "all-to-all"}
    assert all(c.asynchronous for c in found.collectives if c.kind == "all-to-all")
    # What is summed in full is small: losses, norms and their gradients.
    assert sum(c.bytes for c in found.collectives if c.kind == "all-reduce") < 1e5


def test_fsdp_gathers_a_layer_once_in_each_pass_the_head_once_and_not_the_embedding():
    found = step("tpu", "fsdp")
    gathers = [c for c in found.collectives if c.kind == "all-gather" and "bf16" in c.shape]
    head = SIZES["tiny"]["vocabulary"] * SIZES["tiny"]["width"]
    layers = found.compiled.parameters - 2 * head
    assert sum(c.bytes for c in gathers) == pytest.approx(2 * (2 * layers + head), rel=0.01)
    assert [c.count for c in gathers if c.count < found.depth / 2 and c.bytes >= 2 * head] == [1]


@pytest.mark.parametrize("name", ["fsdp", "tensor"])
def test_a_decoder_has_no_product_of_float32(name):
    products = step("tpu", name).measures.products
    assert not [dtypes for dtypes in products if "f32 x" in dtypes or "x f32" in dtypes]


def test_experts_exchange_tokens_over_their_axis_alone():
    found = step("tpu", "experts")
    exchanges = found.of_layers("all-to-all")
    assert {c.axes for c in exchanges} == {("expert",), ("fsdp",)}
    assert all(c.asynchronous for c in exchanges if c.axes == ("fsdp",))  # sums of the gradients of weights


def test_tensor_parallel_layers_have_no_all_to_all_and_gather_norms_in_half_precision():
    found = step("tpu", "tensor")
    assert not [c for c in found.collectives if c.kind == "all-to-all" and c.axes == ("tensor",)]
    gathered = [c for c in found.collectives if c.kind == "all-gather" and c.axes == ("tensor",)]
    assert gathered and not [c for c in gathered if "f32[" in c.shape]


def test_v4_has_one_device_for_each_chip():
    assert make_mesh(MeshSpec(fsdp=-1), targets.devices("v4:2x2x4")).shape["fsdp"] == 16


def test_products_of_int8_are_summed_in_int32():
    found = dense_gradient("tpu", "int8").products
    assert found["s8 x s8 -> s32"] == 4 and sum(found.values()) == 6  # the gradients of the kernels are in bfloat16


def test_products_of_float8_have_operands_in_eight_bits():
    """A TPU v5e converts them within the product; a TPU v7 multiplies them."""
    found = dense_gradient("tpu", "float8").products
    assert sum(found.values()) == 6 and all("bf16" not in name.partition(" -> ")[0] for name in found), found


def test_rings_of_a_pipeline_run_in_splash_kernels():
    kernels = step("tpu", "pipeline").measures.kernels
    # A layer attends to its own keys and to the received ones; see layers/part.py.
    assert kernels["splash dq"] == 2 * STAGE_CALLS and kernels["splash dkv"] == 4 * STAGE_CALLS
    assert kernels["splash fwd"] >= 4 * STAGE_CALLS


def test_a_pipeline_holds_no_array_of_half_the_global_batch():
    found = step("tpu", "pipeline")
    assert not largest(found.text, found.activations // 2)
    assert found.kinds("pipeline") >= {"collective-permute"} and "all-gather" not in found.kinds("pipeline")
