"""Checkpoints in a bucket, read without a mount."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from engine.base.errors import CheckpointError
from engine.checkpoint import bucket_arrays
from engine.checkpoint.bucket_copy import readable
from engine.checkpoint.manifest import DamagedCheckpoint
from engine.checkpoint.store import CheckpointStore
from engine.checkpoint.warm_start import find_step, read_weights
from engine.cluster.exit_status import ExitStatus
from engine.config.schema import Init
from engine.storage.mounts import shown
from tests import runs, zoo
from tests.bucket_store import upload
from tests.checkpoint.saves import Saves

pytestmark = pytest.mark.multiprocess

STATE = {
    "step": jnp.int32(7),
    "params": {"a.b/kernel": jnp.arange(512.0).reshape(8, 64), "b/bias": jnp.arange(3, dtype=jnp.bfloat16)},
    "carried": {"norm/mean": jnp.arange(5.0)},
    "opt_state": [{"mu": {"b/bias": jnp.ones(3)}}, (jnp.zeros(()), jnp.arange(6).reshape(2, 3))],
}


@pytest.fixture
def run(bucket, tmp_path):
    """The address of a run with a checkpoint in a bucket; there is no local copy of it."""
    store = Saves(tmp_path / "run" / "checkpoints")
    store.save(500, STATE)
    store.close()
    upload(bucket, tmp_path / "run", "team/run")
    return "s3://data/team/run"


def abstract(tree, spec=PartitionSpec(), devices=8):  # noqa: B008
    mesh = jax.make_mesh((devices // 2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

    def place(x):
        fitting = spec if x.ndim == 2 and x.shape[0] == 8 else PartitionSpec()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, fitting))

    return jax.tree.map(place, tree)


def test_frozen_parameters_are_read_from_the_bucket_too(bucket, tmp_path):
    store = Saves(tmp_path / "run" / "checkpoints")
    store.checkpoints.prepare(2, STATE, ["a.b/kernel"])
    store.save(500, STATE)
    store.close()
    upload(bucket, tmp_path / "run", "team/run")
    wanted = abstract(STATE, PartitionSpec("data"))
    for address in ("s3://data/team/run", "s3://data/team/run/checkpoints/500"):
        found = read_weights(Init(checkpoint=address), wanted, {})
        assert jax.tree.map(np.array_equal, dict(found.params), STATE["params"]) == {"a.b/kernel": True, "b/bias": True}
    store = CheckpointStore(readable("s3://data/team/run") / "checkpoints")
    assert store.describe()[0].error is None
    zoo.assert_equal(store.restore(500, wanted), STATE)
    bucket.write("team/run/checkpoints/frozen-2/manifest.json", b"").result()
    with pytest.raises(CheckpointError, match="frozen-2, which is missing or has no manifest"):
        read_weights(Init(checkpoint="s3://data/team/run/checkpoints/500"), wanted, {})


def test_state_is_restored_on_another_mesh_with_the_same_bits(run, tmp_path):
    wanted = abstract(STATE, PartitionSpec("data"))
    store = CheckpointStore(readable(run) / "checkpoints")
    assert store.steps() == [500]
    (info,) = store.describe()
    assert info.bytes > 500 and math.isnan(info.time)
    found = store.restore(500, wanted)
    expected = CheckpointStore(tmp_path / "run" / "checkpoints").restore(500, wanted)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.sharding == y.sharding and x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_weights_of_a_new_run_are_read_without_the_other_arrays(run, bucket, tmp_path):
    large = {**STATE, "opt_state": {"mu": jnp.arange(1 << 18, dtype=jnp.float32)}}
    store = Saves(tmp_path / "large" / "checkpoints")
    store.save(3, large)
    store.close()
    upload(bucket, tmp_path / "large", "large")
    wanted = abstract({"params": {"a.b/kernel": jnp.zeros((8, 64), jnp.float16)}, "carried": STATE["carried"]})
    for address in ("s3://data/large", "s3://data/large/checkpoints/3"):
        assert find_step(address) == ("s3://data/large/checkpoints", 3)
        before = bytes_read()
        found = read_weights(Init(checkpoint=address), wanted, {})
        assert bytes_read() - before < 1 << 18  # a quarter of the state
        np.testing.assert_array_equal(np.asarray(found.params["a.b/kernel"], np.float32).ravel(), np.arange(512))
        assert found.params["a.b/kernel"].dtype == jnp.float16
        assert shown(found.message).startswith("initialized 2 arrays from s3://data/large/checkpoints/3; random: none")


def test_empty_state_needs_no_request(tmp_path):
    empty = {"params": {}, "carried": {}}
    assert bucket_arrays.read(tmp_path, "s3://none/run/checkpoints/1/state", empty) == empty


def bytes_read():
    (metric,) = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/s3/bytes_read")
    return metric["values"][0]["value"]


def test_changed_array_and_missing_objects_are_reported_with_the_address(run, bucket):
    objects = {key: bucket.read(key).result().value for key in map(bytes.decode, bucket.list().result())}
    kernel = np.asarray(STATE["params"]["a.b/kernel"]).tobytes()
    (holder,) = [key for key, value in objects.items() if kernel in value]
    wanted = abstract({"params": STATE["params"], "carried": STATE["carried"]})
    changed = objects[holder].replace(kernel, kernel[:-1] + b"\x40")
    bucket.write(holder, changed).result()
    step = r"s3://data/team/run/checkpoints/500"
    with pytest.raises(DamagedCheckpoint) as damaged:
        read_weights(Init(checkpoint=run), wanted, {})
    assert shown(str(damaged.value)).startswith(
        f"{step}: is damaged: the array params/a.b/kernel differs from its digest"
    )
    assert damaged.value.exit_code == ExitStatus.STOP
    bucket.write(holder, None).result()
    with pytest.raises(CheckpointError) as missing:
        read_weights(Init(checkpoint=run), wanted, {})
    assert shown(str(missing.value)).startswith(f"{step}/state: cannot be read (")
    assert "An object was removed" in str(missing.value)
    with pytest.raises(CheckpointError, match=r"init.checkpoint = 's3://data/none': no checkpoint found"):
        read_weights(Init(checkpoint="s3://data/none"), wanted, {})


def test_damaged_small_files_of_a_step_are_named_with_the_code_for_damage(run, bucket):
    small = "team/run/checkpoints/500/"
    for name, text in (("state/_METADATA", "state/_METADATA: "), ("manifest.json", "manifest.json is not the text of")):
        content = bucket.read(small + name).result().value
        bucket.write(small + name, content[:-9]).result()
        store = CheckpointStore(readable(run) / "checkpoints")
        with pytest.raises(DamagedCheckpoint) as damaged:
            if name == "manifest.json":
                (info,) = store.describe()
                assert info.error is not None and info.bytes == 0
                raise info.error
            store.restore(500, abstract(STATE))
        assert shown(str(damaged.value)).startswith(f"s3://data/{small.rstrip('/')}: is damaged: {text}")
        assert damaged.value.exit_code == ExitStatus.STOP
        bucket.write(small + name, content).result()
    assert CheckpointStore(readable(run) / "checkpoints").restore(500, abstract(STATE))["step"] == 7


TWO = """
import os, sys
from engine.cluster import cluster_detection, processes
processes.initialize(cluster_detection.detect({}, os.environ).process)
import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from engine.checkpoint.bucket_copy import readable
from engine.checkpoint.store import CheckpointStore
from engine.base.errors import CheckpointError
sharding = NamedSharding(jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,)), PartitionSpec("data"))
wanted = {"x": jax.ShapeDtypeStruct((8, 1024), "float32", sharding=sharding)}
try:
    CheckpointStore(readable(sys.argv[1]) / "checkpoints").restore(1, wanted)
except CheckpointError as error:
    print(type(error).__name__, error.exit_code, error.everywhere, str(error).partition("damaged: ")[2])
processes.leave()
"""


def test_damage_that_one_process_reads_is_raised_by_all(bucket, tmp_path):
    rows = np.arange(8192, dtype=np.float32).reshape(8, 1024)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    store = Saves(tmp_path / "run" / "checkpoints")
    store.save(1, {"x": jax.device_put(rows, NamedSharding(mesh, PartitionSpec("data")))})
    store.close()
    upload(bucket, tmp_path / "run", "run")
    objects = {key: bucket.read(key).result().value for key in map(bytes.decode, bucket.list().result())}
    holder, value = next((key, value) for key, value in objects.items() if rows[7].tobytes() in value)
    last = max(value.find(row.tobytes()) for row in rows)  # of the row at the end of the object; one process reads it
    bucket.write(holder, value[: last + 8]).result()
    lines = runs.lines_by_process(TWO, "s3://data/run", processes=2)
    assert lines["0"][-1] == lines["1"][-1]
    assert lines["0"][-1].startswith("DamagedCheckpoint 43 True state: OUT_OF_RANGE")
