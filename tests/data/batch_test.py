"""`Batch`: a pytree of examples and their weight."""

import json
import os
import pickle
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from engine.base.errors import ShardingError
from engine.data.batch import MEASURE_EVERY, Batch, Placement, local_rows, to_global_arrays


def test_batch_is_a_pytree_of_examples_and_weight():
    batch = Batch({"x": np.arange(3)}, np.ones(3, np.float32))
    doubled = jax.tree.map(lambda x: 2 * x, batch)
    assert isinstance(doubled, Batch)
    assert doubled.examples["x"].tolist() == [0, 2, 4]
    assert doubled.weight.tolist() == [2, 2, 2]


def test_batch_can_be_pickled():
    batch = pickle.loads(pickle.dumps(Batch({"x": np.arange(3)}, np.ones(3, np.float32))))
    assert batch.examples["x"].tolist() == [0, 1, 2]


def mesh(**axes):
    devices = jax.devices()[: int(np.prod(list(axes.values())))]
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes), devices=devices)


BATCH = {"image": np.arange(16 * 6, dtype=np.float32).reshape(16, 2, 3), "label": np.arange(16, dtype=np.int32)}


@pytest.mark.parametrize(
    ("axes", "spec", "shards"),
    [
        (dict(data=8), P("data"), 8),
        (dict(data=2, fsdp=4), P(("data", "fsdp")), 8),
        (dict(data=2, fsdp=2, tensor=2), P(("data", "fsdp")), 4),
        (dict(data=4, fsdp=2), P(), 1),
    ],
)
def test_every_leaf_is_split_along_the_batch(axes, spec, shards):
    sharding = NamedSharding(mesh(**axes), spec)
    placed = to_global_arrays(BATCH, sharding)
    for name, leaf in placed.items():
        assert leaf.sharding == sharding
        assert np.array_equal(leaf, BATCH[name])
        for shard in leaf.addressable_shards:
            assert shard.data.shape == (16 // shards, *BATCH[name].shape[1:])
            assert np.array_equal(shard.data, BATCH[name][shard.index])


def test_single_device_gets_host_arrays_unchanged():
    placed = to_global_arrays((BATCH, BATCH), NamedSharding(mesh(data=1), P("data")))
    assert all(placed[i][name] is BATCH[name] for i in (0, 1) for name in BATCH)


def test_transfers_to_a_single_device_are_estimated_from_a_few_that_are_measured():
    sharding, ones = NamedSharding(mesh(data=1), P("data")), np.ones(16, np.float32)
    place = Placement(sharding, ones)
    measured, times = [], [0.0]
    for number in range(1, MEASURE_EVERY + 4):
        [batch] = place([Batch(BATCH, ones)])
        measured += [number] if isinstance(batch.examples["image"], jax.Array) else []
        times.append(place.transfer_s)
        assert np.array_equal(batch.examples["image"], BATCH["image"])
    assert measured == [2, 2 + MEASURE_EVERY]
    seconds = np.diff(times)
    assert seconds[0] == 0
    assert seconds[1:MEASURE_EVERY] == pytest.approx(seconds[1])
    assert seconds[1] > 0


def test_weights_of_full_and_partial_batches_have_one_sharding():
    ones, partial = np.ones(16, np.float32), np.arange(16, dtype=np.float32)
    for axes in (dict(data=1), dict(data=8)):
        place = Placement(NamedSharding(mesh(**axes), P("data")), ones)
        full, part = place([Batch(BATCH, ones), Batch(BATCH, partial)])
        assert isinstance(full.weight, jax.Array)
        assert isinstance(part.weight, jax.Array)
        assert full.weight.sharding == part.weight.sharding  # with two, JAX would compile a program twice


def test_several_batches_are_placed_in_one_call():
    sharding = NamedSharding(mesh(data=8), P("data"))
    one, two = to_global_arrays((BATCH, {"label": BATCH["label"] + 1}), sharding)
    assert np.array_equal(one["label"] + 1, two["label"])


@pytest.mark.parametrize("spec", [P("data"), P(("data", "fsdp")), P()])
def test_one_process_feeds_all_rows(spec):
    assert local_rows(NamedSharding(mesh(data=4, fsdp=2), spec), 16) == slice(0, 16)


def test_indivisible_batch_raises_sharding_error():
    sharding = NamedSharding(mesh(data=2, fsdp=4), P(("data", "fsdp")))
    with pytest.raises(
        ShardingError, match=r"batch of 12 rows is not divisible by 8 shards \(data x fsdp\). Use a mul"
    ):
        local_rows(sharding, 12)


PROCESS = """
import json, sys
import jax, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from engine.data.batch import local_rows, to_global_arrays

jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
devices = np.array(jax.devices())  # two of each process
x = np.arange(80).reshape(8, 10)
for order in ([0, 1, 2, 3], [0, 2, 1, 3]):
    mesh = Mesh(devices[order].reshape(2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    for spec in (P(("data", "fsdp")), P("data"), P()):
        sharding = NamedSharding(mesh, spec)
        rows = local_rows(sharding, 8)
        placed = to_global_arrays({"x": x[rows]}, sharding)["x"]
        assert placed.shape == (8, 10) and placed.sharding == sharding
        assert all(np.array_equal(shard.data, x[shard.index]) for shard in placed.addressable_shards)
        print(json.dumps(np.arange(8)[rows].tolist()))
"""


@pytest.mark.multiprocess
def test_each_process_feeds_the_rows_of_its_devices(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(i)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for i in range(2)
    ]
    try:
        results = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert [process.returncode for process in started] == [0, 0], results
    first, second = ([json.loads(line) for line in out.splitlines()] for out, _ in results)
    whole = list(range(8))
    assert first == [[0, 1, 2, 3], [0, 1, 2, 3], whole, [0, 1, 4, 5], whole, whole]
    assert second == [[4, 5, 6, 7], [4, 5, 6, 7], whole, [2, 3, 6, 7], whole, whole]
