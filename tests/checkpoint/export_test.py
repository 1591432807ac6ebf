import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.layout import Format, Layout
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors import safe_open

from engine.base.errors import CheckpointError
from engine.checkpoint.export import export_safetensors


def state():
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    kernel = jax.device_put(jnp.arange(32.0).reshape(8, 4), NamedSharding(mesh, PartitionSpec("fsdp")))
    return {
        "step": jnp.int32(7),
        "params": {"encoder/0/kernel": kernel, "encoder/0/scale": jnp.ones((), jnp.bfloat16), "frozen": jnp.ones(2)},
        "carried": {"norm/mean": jnp.full((3,), 2.0)},
        "opt_state": (),
        "ema": {"encoder/0/kernel": kernel + 1},
    }


def read(path):
    with safe_open(path, "flax") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


def test_export_writes_averaged_parameters_and_model_state(tmp_path):
    names = export_safetensors(state(), tmp_path / "model.safetensors")
    stored = read(tmp_path / "model.safetensors")
    assert sorted(stored) == names == ["encoder/0/kernel", "encoder/0/scale", "frozen", "norm/mean"]
    assert np.array_equal(stored["encoder/0/kernel"], np.arange(32.0).reshape(8, 4) + 1)
    assert stored["encoder/0/scale"].dtype == jnp.bfloat16 and stored["encoder/0/scale"].shape == ()
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_export_without_ema_writes_trained_parameters(tmp_path):
    export_safetensors(state(), tmp_path / "model.safetensors", use_ema=False)
    assert np.array_equal(read(tmp_path / "model.safetensors")["encoder/0/kernel"], np.arange(32.0).reshape(8, 4))


def test_array_with_transposed_memory_layout_keeps_its_values(tmp_path):
    values = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    columns = Format(Layout((1, 0)), jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    array = jax.device_put(values, columns)
    assert not np.asarray(array).flags.c_contiguous
    export_safetensors({"params": {}, "carried": {"w": array}}, tmp_path / "w.safetensors")
    assert np.array_equal(read(tmp_path / "w.safetensors")["w"], values)


def test_unwritable_path_error_names_the_path(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent/model\.safetensors: the weights cannot be exported"):
        export_safetensors(state(), tmp_path / "absent" / "model.safetensors")


def test_failed_export_leaves_no_file_and_keeps_what_other_exports_write(tmp_path):
    path = tmp_path / "model.safetensors"
    path.mkdir()  # so that the finished file cannot get its name
    other = tmp_path / f".model.safetensors.{os.getpid()}.tmp"  # of a process with this number on another host
    other.write_text("theirs")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: the weights cannot be exported"):
        export_safetensors(state(), path)
    assert sorted(tmp_path.iterdir()) == [other, path]
    assert other.read_text() == "theirs"
