"""The mesh: sizes of axes, remaining devices, presets, slices, the order of devices, and error texts."""

import dataclasses
import importlib.util
import os
import socket
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
import pytest

from engine.base.errors import ConfigError, ShardingError
from engine.config.schema import DcnMeshSpec, MeshSpec
from engine.parallel.mesh import (
    AXES,
    axes_of,
    axes_text,
    batch_sharding,
    check_batch,
    cpu_device_count,
    fake_devices,
    make_mesh,
    resolve_axes,
)

H100 = "NVIDIA H100 80GB HBM3"


def sizes(config, devices=8, **known):
    """Returns the axes whose size is not 1."""
    return {axis: size for axis, size in resolve_axes(config, devices, **known).sizes.items() if size != 1}


def positions(mesh):
    """Returns the index of each device of a mesh among all devices, without the axes of size 1."""
    order = {device: i for i, device in enumerate(jax.devices())}
    return np.vectorize(order.get)(mesh.devices).squeeze().tolist()


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (MeshSpec(), {"data": 8}),
        (MeshSpec(fsdp=-1), {"fsdp": 8}),
        (MeshSpec(fsdp=4), {"data": 2, "fsdp": 4}),
        (MeshSpec(data=2, fsdp=-1, tensor=2), {"data": 2, "fsdp": 2, "tensor": 2}),
        (MeshSpec(data=-1, tensor=8), {"tensor": 8}),
        (MeshSpec(pipeline=2, context=-1, expert=2), {"pipeline": 2, "expert": 2, "context": 2}),
    ],
)
def test_axes_are_resolved(config, found):
    assert sizes(config) == found
    assert tuple(resolve_axes(config, 8).sizes) == AXES


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (MeshSpec(preset="fsdp"), {"fsdp": 8}),
        (MeshSpec(preset="fsdp", fsdp=4), {"data": 2, "fsdp": 4}),
        (MeshSpec(preset="fsdp", tensor=2), {"fsdp": 4, "tensor": 2}),
        (MeshSpec(preset="hybrid-8", fsdp=2), {"data": 4, "fsdp": 2}),
        (MeshSpec(preset="slices"), {"fsdp": 8}),
        (MeshSpec(preset="slices", dcn=DcnMeshSpec(data=2)), {"data": 2, "fsdp": 4}),
    ],
)
def test_preset_sets_the_unset_axes(config, found):
    assert sizes(config) == found
    assert resolve_axes(config, 8).origin.startswith(f"preset {config.preset}")


@pytest.mark.parametrize(
    ("devices", "kind", "known", "found", "origin"),
    [
        (32, H100, {}, {"data": 4, "fsdp": 8}, "preset hybrid-8, the usual mesh of H100 SXM"),
        (4, H100, {}, {"fsdp": 4}, "preset hybrid-8"),  # a part of a host
        (12, H100, {}, {"data": 3, "fsdp": 4}, "preset hybrid-8"),
        (8, "NVIDIA L4", {}, {"data": 8}, "preset replicated, the usual mesh of L4"),
        (16, "TPU v4", {"slices": 1, "join": False}, {"fsdp": 16}, "preset slices, the usual mesh of TPU v4"),
        (32, "TPU v4", {"slices": 2, "join": False}, {"data": 2, "fsdp": 16}, "preset slices"),
        (8, "cpu", {}, {"data": 8}, "the default, copies on all devices"),
    ],
)
def test_auto_preset_uses_the_usual_mesh_of_the_hardware(devices, kind, known, found, origin):
    assert sizes(MeshSpec(), devices, kind=kind, **known) == found
    assert resolve_axes(MeshSpec(), devices, kind=kind, **known).origin.startswith(origin)


def test_config_sizes_override_auto():
    assert sizes(MeshSpec(tensor=8), 32, kind=H100) == {"data": 4, "tensor": 8}
    assert sizes(MeshSpec(data=-1), 32, kind=H100) == {"data": 32}
    assert resolve_axes(MeshSpec(data=-1), 32, kind=H100).origin == "the config"


def test_indivisible_mesh_raises_sharding_error_with_alternatives():
    with pytest.raises(ShardingError) as error:
        resolve_axes(MeshSpec(fsdp=3), 8)
    assert str(error.value) == (
        "mesh: data=-1 x fsdp=3 needs a multiple of 3 devices, found 8. Meshes that work here: data=2 x fsdp=4; "
        "data=4 x fsdp=2; fsdp=8."
    )
    hint = r"Set mesh.data=-1 to take the remaining devices.$"
    with pytest.raises(ShardingError, match=r"data=2 x fsdp=2 needs 4 devices, found 8. Meshes that .*" + hint):
        resolve_axes(MeshSpec(data=2, fsdp=2), 8)
    with pytest.raises(ShardingError, match=r"data=2 x fsdp=3 needs 6 devices, found 8.*\d.$"):  # data=-1 does not help
        resolve_axes(MeshSpec(data=2, fsdp=3), 8)
    with pytest.raises(ShardingError, match=r"found 1. .* On a CPU, JAX_NUM_CPU_DEVICES=4 simulates 4 devices.$"):
        resolve_axes(MeshSpec(fsdp=4), 1, kind="cpu")
    with pytest.raises(ShardingError, match=r"fsdp and tensor are both -1"):
        resolve_axes(MeshSpec(fsdp=-1, tensor=-1), 8)


def test_alternatives_are_found_for_a_thousand_devices():
    start = time.perf_counter()
    with pytest.raises(ShardingError, match=r"pipeline=3 x data=5 .* found 1024. Meshes that work here: pipeline="):
        resolve_axes(MeshSpec(pipeline=3, data=5, fsdp=3, expert=3, context=3, tensor=3), 1024)
    assert time.perf_counter() - start < 1


def test_slices_are_the_outermost_factor_of_each_axis():
    config = MeshSpec(data=2, fsdp=2, dcn=DcnMeshSpec(data=2))
    mesh = make_mesh(config)
    assert dict(mesh.shape) == {"pipeline": 1, "data": 4, "fsdp": 2, "expert": 1, "context": 1, "tensor": 1}
    # Devices 0 to 3 are the first slice, which is the first half of `data`.
    assert positions(mesh) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    axes = axes_of(config, jax.devices())
    assert (axes.slices, axes.within["data"], axes.between["data"]) == (2, 2, 2)
    # With slices along an inner axis, its outer half is the second slice, whatever axis precedes it.
    assert positions(make_mesh(MeshSpec(data=2, fsdp=2, dcn=DcnMeshSpec(fsdp=2)))) == [[0, 1, 4, 5], [2, 3, 6, 7]]


def test_remaining_devices_are_counted_within_a_slice():
    assert sizes(MeshSpec(dcn=DcnMeshSpec(data=2))) == {"data": 8}
    assert sizes(MeshSpec(fsdp=-1, dcn=DcnMeshSpec(data=2))) == {"data": 2, "fsdp": 4}
    assert sizes(MeshSpec(fsdp=-1, dcn=DcnMeshSpec(data=-1)), 8, slices=4) == {"data": 4, "fsdp": 2}


def test_unset_slices_become_data_parallel():
    axes = resolve_axes(MeshSpec(fsdp=4), 8, slices=2, join=False)
    assert (axes.sizes["data"], axes.between["data"]) == (2, 2)
    assert axes.origin == "the config; mesh.dcn.data=2, since there are 2 slices"
    assert resolve_axes(MeshSpec(fsdp=8), 8, slices=2).slices == 1  # hosts of GPUs may be one


@pytest.mark.parametrize(
    ("config", "known", "message"),
    [
        (MeshSpec(dcn=DcnMeshSpec(data=3)), {}, r"mesh.dcn: data=3 needs a multiple of 3 devices, found 8. Set"),
        (MeshSpec(dcn=DcnMeshSpec(data=-1)), {}, r"mesh.dcn: data=-1: the slices of these devices are unknown"),
        (MeshSpec(dcn=DcnMeshSpec(data=-1, fsdp=-1)), {"slices": 2}, r"mesh.dcn: data and fsdp are both -1"),
        (MeshSpec(dcn=DcnMeshSpec(data=4)), {"slices": 2, "join": False}, r"needs 4 slices, found 2. .* must be 2"),
        (MeshSpec(dcn=DcnMeshSpec(data=3)), {"slices": 4}, r"needs 3 slices, found 4. .* a divisor of it \(1, 2, 4\)"),
        (
            MeshSpec(fsdp=8, dcn=DcnMeshSpec(data=2)),
            {},
            r"fsdp=8 needs a multiple of 8 devices, found 4 in each of 2 slices \(mesh.dcn: data=2\)\. .* fsdp=4",
        ),
    ],
)  # fmt: skip
def test_invalid_slices_raise_sharding_error(config, known, message):
    with pytest.raises(ShardingError, match=message):
        resolve_axes(config, 8, **known)


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What the mesh reads of a GPU."""

    process_index: int
    slice_index: int
    platform = "gpu"
    device_kind = H100


@pytest.mark.parametrize(
    ("hosts", "processes", "known"),
    [(2, 16, False), (2, 16, True), (1, 8, True), (2, 2, False), (2, 2, True)],
    ids=str,
)
def test_automatic_mesh_of_gpus_splits_parameters_within_a_host_whatever_its_processes(hosts, processes, known):
    count = 8 * hosts
    devices: list[Any] = [Gpu(i * processes // count, i // 8 if known else 0) for i in range(count)]
    assert axes_text(axes_of(MeshSpec(), devices).sizes) == ("data=2 x fsdp=8" if hosts == 2 else "fsdp=8")


def test_mesh_has_all_devices_and_splits_rows_over_data_fsdp_and_expert():
    mesh = make_mesh(MeshSpec(data=2, fsdp=2, expert=2))
    assert batch_sharding(mesh).shard_shape((16, 3)) == (2, 3)
    assert positions(mesh) == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    assert batch_sharding(make_mesh(MeshSpec(data=2, context=2, tensor=2))).shard_shape((16, 3)) == (8, 3)


PROCESS = """
import sys, jax
jax.distributed.initialize("127.0.0.1:" + sys.argv[1], 2, int(sys.argv[2]))
from engine.config.schema import MeshSpec, DcnMeshSpec
from engine.parallel.mesh import axes_of, make_mesh
for config in (MeshSpec(fsdp=2), MeshSpec(fsdp=2, dcn=DcnMeshSpec(data=-1)), MeshSpec(data=2, dcn=DcnMeshSpec(fsdp=2))):
    mesh = make_mesh(config)
    print(axes_of(config, jax.devices()).slices, [d.process_index for d in mesh.devices.flat])
"""


@pytest.mark.multiprocess
def test_devices_of_a_process_are_adjacent_in_the_mesh(monkeypatch, free_port):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    both = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(free_port), rank], stdout=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    texts = [process.communicate(timeout=300)[0] for process in both]
    assert texts[0] == texts[1] and [process.returncode for process in both] == [0, 0]
    assert texts[0].splitlines() == ["1 [0, 0, 1, 1]", "2 [0, 0, 1, 1]", "2 [0, 1, 0, 1]"]


@pytest.fixture
def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_indivisible_batch_raises_sharding_error_with_nearest_sizes():
    mesh = make_mesh(MeshSpec(data=2, fsdp=4))
    check_batch(mesh, 16, 2)
    with pytest.raises(ShardingError, match=r"= 20 is not divisible by 8 shards \(data=2 x fsdp=4\)[.] Use 16 or 24"):
        check_batch(mesh, 20, 1)
    with pytest.raises(ShardingError, match=r"8 shards .* x 4 microbatches. Use 32"):
        check_batch(mesh, 16, 4)
    with pytest.raises(
        ShardingError, match=r"^evaluations.a.batch_size = 3 is not divisible by 4 shards \(data=4\). Use 4,"
    ):
        check_batch(make_mesh(MeshSpec(tensor=2)), 3, 1, "evaluations.a.batch_size")
    with pytest.raises(ShardingError, match=r"= 3 is not divisible by 2 microbatches. Use 2 or 4,"):
        check_batch(make_mesh(MeshSpec(), jax.devices()[:1]), 3, 2)


def test_axes_text_leaves_out_axes_of_size_one():
    assert axes_text({"pipeline": 1, "data": -1, "fsdp": 4}) == "data=-1 x fsdp=4"
    assert axes_text({"data": 1, "fsdp": 1}) == "data=1"


def test_cpu_device_count_follows_setting_and_cores(monkeypatch):
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(6)))
    assert cpu_device_count(None, 64) is None
    assert cpu_device_count(3, 64) == 3
    assert cpu_device_count("auto", 64) == 4  # 6 and 5 do not divide 64
    with pytest.raises(ConfigError, match=r"mesh.cpu_devices = 0: allowed are a positive number, auto and None"):
        cpu_device_count(0, 64)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")
    assert cpu_device_count("auto", 64) is None


def test_fake_devices_are_not_created_if_enough_exist(monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")
    spec = MeshSpec(fsdp=64)
    assert fake_devices(spec, 128) == (spec, None)
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    spec = MeshSpec(fsdp=64, cpu_devices=64)
    assert fake_devices(spec, 128) == (spec, None)


SLICES = """
import sys
from jax.experimental import topologies
from engine.config.schema import MeshSpec, DcnMeshSpec
from engine.parallel.mesh import axes_text, make_mesh
devices = topologies.get_topology_desc("v5e:2x4", "tpu", num_slices=2).devices
for config in (MeshSpec(), MeshSpec(fsdp=4, dcn=DcnMeshSpec(fsdp=2))):
    mesh = make_mesh(config, devices)
    print(axes_text(mesh.shape), [device.slice_index for device in mesh.devices.flat])
devices = topologies.get_topology_desc("v5e:4x8", "tpu").devices
print(axes_text(make_mesh(MeshSpec(data=2, fsdp=4, tensor=4), devices).shape))
"""


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu to describe TPUs")
def test_tpu_slices_are_not_joined():
    environment = {**os.environ, "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    done = subprocess.run([sys.executable, "-c", SLICES], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"data=2 x fsdp=8 {[0] * 8 + [1] * 8}",
        f"data=2 x fsdp=8 {([0] * 4 + [1] * 4) * 2}",
        "data=2 x fsdp=4 x tensor=4",
    ]
