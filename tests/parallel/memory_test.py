import jax
import pytest

from engine.base.errors import ConfigError
from engine.config.schema import MeshSpec
from engine.parallel.memory import HOST_MEMORY, check_host_memory, device_memory, device_memory_limit
from engine.parallel.mesh import make_mesh


@pytest.mark.parametrize("mesh", [None, make_mesh(MeshSpec())])
def test_cpu_device_has_device_memory_and_host_memory(mesh):
    assert device_memory(mesh) == jax.devices()[0].default_memory().kind != HOST_MEMORY
    check_host_memory(mesh, "train.offload_optimizer")


def test_missing_host_memory_raises_config_error():
    with pytest.raises(ConfigError) as error:
        check_host_memory(None, "train.offload_optimizer", {"device"})
    assert str(error.value) == (
        "train.offload_optimizer: a cpu device cannot read host memory (pinned_host); its memories are device. "
        "Leave train.offload_optimizer at its default."
    )


def test_cpu_device_states_no_memory_limit():
    assert device_memory_limit(make_mesh(MeshSpec())) is None
