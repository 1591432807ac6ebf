"""The mesh: axes from numbers, what is left, and refusals with the arithmetic."""

import jax
import pytest

from engine.config.errors import ConfigError, ShardingError
from engine.config.schema import MeshSpec
from engine.parallel.mesh import batch_sharding, check_batch, cpu_device_count, make_mesh, resolve_axes


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (MeshSpec(), (8, 1, 1)),
        (MeshSpec(fsdp=-1), (1, 8, 1)),
        (MeshSpec(fsdp=4), (2, 4, 1)),
        (MeshSpec(data=2, fsdp=-1, tensor=2), (2, 2, 2)),
        (MeshSpec(data=-1, tensor=8), (1, 1, 8)),
        (MeshSpec(data=2, fsdp=4), (2, 4, 1)),
    ],
)
def test_axes_are_resolved(config, sizes):
    assert tuple(resolve_axes(config, 8).values()) == sizes


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (MeshSpec(preset="fsdp"), (1, 8, 1)),
        (MeshSpec(preset="fsdp", fsdp=4), (2, 4, 1)),
        (MeshSpec(preset="fsdp", tensor=2), (1, 4, 2)),
    ],
)
def test_a_preset_gives_the_axes_that_are_not_set(config, sizes, monkeypatch):
    monkeypatch.setattr("engine.config.hardware.MESH_PRESETS", {"fsdp": {"fsdp": -1}})
    assert tuple(resolve_axes(config, 8).values()) == sizes


def test_a_mesh_that_does_not_divide_is_refused_with_the_arithmetic():
    with pytest.raises(ShardingError) as error:
        resolve_axes(MeshSpec(fsdp=3), 8)
    assert "fsdp=3 x tensor=1 needs a multiple of 3 devices, found 8" in str(error.value)
    assert "Meshes that work here: data=" in str(error.value)
    with pytest.raises(ShardingError, match=r"data=2 x fsdp=2 x tensor=1 needs 4 devices, found 8"):
        resolve_axes(MeshSpec(data=2, fsdp=2), 8)
    with pytest.raises(ShardingError, match=r"fsdp and tensor are both -1"):
        resolve_axes(MeshSpec(fsdp=-1, tensor=-1), 8)


def test_the_mesh_spans_all_devices_and_rows_are_split_over_data_and_fsdp():
    mesh = make_mesh(MeshSpec(data=2, fsdp=4))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    assert batch_sharding(mesh).shard_shape((16, 3)) == (2, 3)
    assert set(mesh.devices.flat) == set(jax.devices())


def test_a_batch_that_does_not_divide_is_refused_with_the_nearest():
    mesh = make_mesh(MeshSpec(data=2, fsdp=4))
    check_batch(mesh, 16, 2)
    with pytest.raises(ShardingError, match=r"= 20 is not divisible by 8 shards \(data=2 x fsdp=4\).*Use 16 or 24"):
        check_batch(mesh, 20, 1)
    with pytest.raises(ShardingError, match=r"8 shards .* x 4 microbatches. Use 32"):
        check_batch(mesh, 16, 4)


def test_cpu_devices(monkeypatch):
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(6)))
    assert cpu_device_count(None, 64) is None
    assert cpu_device_count(3, 64) == 3
    assert cpu_device_count("auto", 64) == 4  # 6 and 5 do not divide 64
    with pytest.raises(ConfigError, match=r"mesh.cpu_devices = 0: allowed are a positive number, auto and None"):
        cpu_device_count(0, 64)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")
    assert cpu_device_count("auto", 64) is None
