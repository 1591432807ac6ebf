"""The report of `convoy explain`: the mesh, the arrays, the bytes on a device, the collectives of a step."""

import dataclasses

import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from engine.compile.collectives import Collective
from engine.compile.report import describe, describe_collectives, describe_flops
from engine.config.schema import DcnMeshSpec, MeshSpec, Sharding
from engine.parallel.mesh import make_mesh
from tests import zoo


def report(task, mesh, sharding=None, **kwargs):
    """Returns the lines of the report, with single spaces."""
    program = zoo.program(task, mesh=mesh, **kwargs)
    sharding = sharding or Sharding()
    text = describe(mesh, sharding, program.mesh, program.abstract_state.to_tree(), program.spec.model.names, 100)
    return [" ".join(line.split()) for line in text.splitlines()]


@pytest.fixture(scope="module")
def decoder():
    return report(zoo.Classify("decoder"), MeshSpec(fsdp=4, tensor=2), ema_decay=0.9)


def test_report_shows_the_mesh_without_axes_of_size_one(decoder):
    assert decoder[0] == "mesh: fsdp=4 x tensor=2 (8 x cpu), from the config"
    assert decoder[1] == "steps: 100"
    assert decoder[-1].startswith("state: ") and decoder[-1].endswith("/device on fsdp=4 x tensor=2")


def test_report_shows_sharding_and_bytes_of_each_parameter(decoder):
    assert "up/kernel f32[32,64] (embed, mlp) (fsdp, tensor) 1.0 KiB/device" in decoder
    assert any(line.startswith("params: ") for line in decoder) and any(line.startswith("ema: ") for line in decoder)


def test_report_merges_repeated_layers_into_one_line():
    assert any(line.startswith("hidden/0,1/bias x2 f32[32]") for line in report(zoo.Classify(), MeshSpec()))


def test_paths_of_repeated_layers_show_their_numbers():
    """Regular expressions such as `optimizer.trainable` need them."""
    mesh = make_mesh(MeshSpec(data=1), jax.devices()[:1])
    leaf = jax.ShapeDtypeStruct((2,), "float32", sharding=NamedSharding(mesh, PartitionSpec()))
    params = {f"stages/{i}/layers/{j}/kernel": leaf for i in (0, 2) for j in range(12)}
    text = describe(MeshSpec(data=1), Sharding(), mesh, {"params": params}, {}, 1)
    assert "stages/0,2/layers/0..11/kernel  x24" in text


def test_report_merges_optimizer_state_sharded_like_its_parameters(decoder):
    (mu,) = (line for line in decoder if line.startswith("mu/"))
    params = next(line for line in decoder if line.startswith("params: "))
    assert mu.startswith("mu/... x15 f32 as the parameters")
    assert mu.split("parameters ")[1] == params.split("numbers, ")[1]
    assert "count x2 i32[] - whole 4 B/device" in decoder


def test_report_lists_optimizer_state_sharded_differently():
    lines = report(zoo.Classify(), MeshSpec(data=8), layout={"zero1": True})
    assert "mu/hidden/1/kernel f32[32,32] - (data, -) 512 B/device" in lines
    assert "hidden/1/kernel f32[32,32] - whole 4.0 KiB/device" in lines


def test_state_of_another_shape_has_no_names_of_dimensions():
    arguments = {"min_dim_size_to_factor": 16}
    task = zoo.Classify("decoder", width=512)
    lines = report(task, MeshSpec(fsdp=4, tensor=2), target="optax.adafactor", arguments=arguments)
    assert "v_col/up/kernel f32[1024] - (fsdp+tensor) 512 B/device" in lines


def test_report_shows_slices_presets_and_changed_rules():
    spec = MeshSpec(preset="fsdp", dcn=DcnMeshSpec(data=2))
    sharding = Sharding(rules={"mlp": None, "embed": "fsdp", "mine": ("fsdp", "tensor")})
    lines = report(zoo.Classify(), spec, sharding)
    assert lines[:3] == [
        "mesh: data=2 x fsdp=4 (8 x cpu), from preset fsdp",
        "slices: 2, data=2 between them, fsdp=4 within each",
        "rules: mlp -> None, mine -> ('fsdp', 'tensor')",
    ]


def test_report_shows_bubble_and_memory_of_each_schedule_of_a_pipeline():
    program = zoo.program(zoo.Classify(), mesh=MeshSpec(data=2), devices=2)
    spec = MeshSpec(pipeline=4)
    mesh = make_mesh(spec)

    def lines(**sharding):
        return describe(spec, Sharding(**sharding), mesh, program.abstract_state.to_tree(), {}, 1).splitlines()[1:4]

    assert lines() == [
        "pipeline: 4 stages, 8 microbatches, 1 repeats, gpipe",
        "  gpipe: stages wait 27% of the time, and keep the activations of 11 microbatches",
        "  1f1b: stages wait 40% of the time, and keep the activations of 1 microbatch and the inputs of 8",
    ]
    assert lines(microbatches=64, repeats=2, schedule="1f1b") == [
        "pipeline: 4 stages, 64 microbatches, 2 repeats, 1f1b",
        "  gpipe: stages wait 2% of the time, and keep the activations of 131 microbatches",
        "  1f1b: stages wait 6% of the time, and keep the activations of 1 microbatch and the inputs of 16",
    ]


REDUCE = Collective("all-reduce", ("data", "fsdp"), 8, 2, 4096, 7168)


def test_collectives_are_sorted_by_moved_bytes():
    gather = Collective("all-gather", ("fsdp",), 4, 1, 1024, 768)
    lines = [" ".join(line.split()) for line in describe_collectives([gather, REDUCE, REDUCE], "gpu").splitlines()]
    assert lines == [
        "collectives of a step, on each device:",
        "all-reduce data x fsdp 8 devices x4 8.0 KiB of results 14.0 KiB sent",
        "all-gather fsdp 4 devices x1 1.0 KiB of results 768 B sent",
        "in all 14.8 KiB sent by each device, in rings",
    ]
    assert describe_collectives([], "cpu") == "collectives of a step: none"


def test_report_notes_limits_of_the_compiled_text():
    assert "no reduce-scatter" in describe_collectives([REDUCE], "cpu")
    unsure = dataclasses.replace(REDUCE, axes=None, exact=False)
    text = describe_collectives([unsure], "tpu")
    assert "all-reduce *  ?  8 devices" in text and "counted as one iteration" in text
    assert "counted as one iteration" not in describe_collectives([REDUCE], "tpu")


def test_flops_have_a_ratio_unless_a_loop_has_unknown_length():
    assert describe_flops(2e9, 3e9, False) == (
        "FLOPs of a step, on all devices: 2.000e+09 of the model (PaLM's rule, causal attention halved), 3.000e+09 "
        "executed (1.50 times)"
    )
    assert describe_flops(2e9, 1e9, True).endswith("halved), at least 1.000e+09 executed")
    assert describe_flops(0, 0, False).endswith("0.000e+00 executed")
