"""Kind and bytes of the collectives of the compiled train step, for each kind of parallelism.

G is the size of all gradients in bytes, float32 like the parameters; S is that of the split parameters. A step also
sums metrics, the weight of the loss and norms: a few numbers, within the tolerance of 10 %.
"""

import json
import math
import os
import subprocess
import sys

import jax
import pytest

from engine.compile.collectives import collectives
from engine.config.schema import MeshSpec
from engine.parallel import targets
from tests import zoo

TASK = zoo.Classify(width=64)
ROWS = 512  # so many that XLA, too, finds moving parameters cheaper than moving activations


def compiled(mesh, precision="float32", **layout):
    program = zoo.program(TASK, mesh=mesh, batch_size=ROWS, layout=layout, precision=precision)
    return program, collectives(program.trace(1).lower().compile().as_text() or "", program.mesh)


def total(found, kind):
    return sum(c.bytes for c in found if c.kind == kind)


def sizes(program, part="params"):
    """Returns (bytes of all arrays, bytes of the split arrays)."""
    leaves = jax.tree.leaves(getattr(program.abstract_state, part))
    split = [x for x in leaves if x.sharding.shard_shape(x.shape) != x.shape]
    return sum(math.prod(x.shape) * 4 for x in leaves), sum(math.prod(x.shape) * 4 for x in split)


def about(size):
    return pytest.approx(size, rel=0.1)


def test_data_parallel_only_sums_gradients():
    """all-reduce G over data."""
    program, found = compiled(MeshSpec(data=8))
    gradients, _ = sizes(program)
    assert {(c.kind, c.axes, c.group) for c in found} == {("all-reduce", ("data",), 8)}
    assert total(found, "all-reduce") == about(gradients)
    assert sum(c.moved for c in found) == about(2 * 7 / 8 * gradients)


def test_fsdp_gathers_parameters_and_sums_gradients():
    """all-gather S and, since XLA:CPU has no reduce-scatter, all-reduce G, both over fsdp."""
    program, found = compiled(MeshSpec(fsdp=8))
    gradients, split = sizes(program)
    assert 0 < split < gradients
    assert {(c.kind, c.axes) for c in found} == {("all-gather", ("fsdp",)), ("all-reduce", ("fsdp",))}
    assert total(found, "all-gather") == about(split)
    assert total(found, "all-reduce") == about(gradients)


def test_hybrid_gathers_within_fsdp_and_sums_shards_over_data():
    """As above over fsdp; the shards of split gradients, S / fsdp, are summed over data."""
    program, found = compiled(MeshSpec(data=2, fsdp=4))
    _, split = sizes(program)
    assert sum(c.bytes for c in found if c.kind == "all-gather") == about(split)
    assert {c.axes for c in found if c.kind == "all-gather"} == {("fsdp",)}
    assert sum(c.bytes for c in found if c.axes == ("data",)) == about(split / 4)


def test_zero1_splits_the_optimizer_and_gathers_the_updated_parameters():
    """all-reduce G and all-gather of the parameters whose optimizer state is split, both over data."""
    program, found = compiled(MeshSpec(data=8), zero1=True)
    gradients, split = sizes(program)
    moments, split_moments = sizes(program, "opt_state")
    assert split == 0  # parameters are replicated
    assert split_moments == about(moments)
    for leaf in jax.tree.leaves(program.abstract_state.opt_state):
        if math.prod(leaf.shape) > 64:
            assert math.prod(leaf.sharding.shard_shape(leaf.shape)) == math.prod(leaf.shape) // 8
    assert {(c.kind, c.axes) for c in found} == {("all-gather", ("data",)), ("all-reduce", ("data",))}
    assert total(found, "all-gather") == about(gradients)
    assert total(found, "all-reduce") == about(gradients)


def test_zero1_gives_the_results_of_data_parallel():
    batches = zoo.batches(4)
    plain, plain_metrics = zoo.run(zoo.program(TASK, mesh=MeshSpec(data=8)), batches)
    split, split_metrics = zoo.run(zoo.program(TASK, mesh=MeshSpec(data=8), layout={"zero1": True}), batches)
    zoo.assert_close(plain.params, split.params, 1e-6)
    zoo.assert_close(plain.opt_state, split.opt_state, 1e-6)
    zoo.assert_close(plain_metrics, split_metrics, 1e-5)  # sums of 16 losses


def test_zero1_in_half_precision_stores_and_gathers_parts_of_the_parameters():
    program, found = compiled(MeshSpec(data=8), "bfloat16", zero1=True)
    all_params, split = sizes(program)
    assert split == about(all_params)
    assert {(c.kind, c.axes) for c in found} <= {("all-gather", ("data",)), ("all-reduce", ("data",))}
    assert total(found, "all-gather") == about(all_params)  # once; XLA:CPU gathers bfloat16 as float32


def test_zero1_in_half_precision_is_close_to_data_parallel():
    batches = zoo.batches(4)
    runs = [
        zoo.run(zoo.program(TASK, mesh=MeshSpec(data=8), precision="bfloat16", ema_decay=0.5, layout=layout), batches)
        for layout in ({}, {"zero1": True})
    ]
    (plain, plain_metrics), (split, split_metrics) = runs
    zoo.assert_close(plain.params, split.params, 1e-2)
    zoo.assert_close(plain.ema, split.ema, 1e-2)
    zoo.assert_close(plain_metrics, split_metrics, 1e-2)


AHEAD_OF_TIME = """
import dataclasses, json, sys
from engine.config.schema import MeshSpec
from engine.compile.collectives import collectives
from engine.parallel import targets
from tests import zoo
target, axis, zero1, width, rows = json.loads(sys.argv[1])
devices = targets.devices(target)
program = zoo.program(
    zoo.Classify(width=width), mesh=MeshSpec(**{axis: 8}), batch_size=rows, layout={"zero1": zero1}, devices=devices
)
found = collectives(program.trace(1).lower().compile().as_text() or "", program.mesh)
gradients = 4 * sum(x.size for x in program.abstract_state.params.values())
print(json.dumps([gradients, [dataclasses.asdict(c) for c in found]]))
"""


def ahead_of_time(*words):
    """Returns (bytes of the gradients, bytes by kind and axes) of the step, compiled in a separate process."""
    done = subprocess.run(
        [sys.executable, "-c", AHEAD_OF_TIME, json.dumps(words)],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    gradients, found = json.loads(done.stdout.splitlines()[-1])
    sizes = {}
    for c in found:
        key = (c["kind"], *c["axes"])
        sizes[key] = sizes.get(key, 0) + c["bytes"]
    return gradients, sizes


@pytest.mark.skipif(bool(targets.missing("tpu")), reason="needs the compiler for TPUs, of the extra aot")
def test_zero1_uses_reduce_scatter_on_tpu():
    """Each gradient is either reduce-scattered, with 1/8 of it as the result, or all-reduced: 8 RS + AR = G."""
    gradients, sizes = ahead_of_time("v5e:2x4", "data", True, 256, 32)
    scattered = 8 * sizes["reduce-scatter", "data"]
    assert scattered > gradients / 2
    assert scattered + sizes["all-reduce", "data"] == about(gradients)
    assert sizes["all-gather", "data"] == about(gradients)


@pytest.mark.skipif(bool(targets.missing("gpu")), reason="needs the compiler for GPUs, of the extra aot")
@pytest.mark.parametrize(("axis", "zero1"), [("fsdp", False), ("data", True)])
def test_fsdp_and_zero1_use_reduce_scatter_on_gpu(axis, zero1):
    """As on a TPU; the scattered parts are gathered again."""
    gradients, sizes = ahead_of_time("h100:1x8", axis, zero1, 64, ROWS)
    scattered = 8 * sizes["reduce-scatter", axis]
    assert scattered > gradients / 2
    assert scattered + sizes["all-reduce", axis] == about(gradients)
    assert sizes["all-gather", axis] == about(scattered)
