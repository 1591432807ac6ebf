import jax
import pytest

from engine.config.errors import ConfigError
from engine.config.schema import MeshSpec
from engine.parallel.memory import HOST_MEMORY, check_host_memory, device_memory
from engine.parallel.mesh import make_mesh


@pytest.mark.parametrize("mesh", [None, make_mesh(MeshSpec())])
def test_a_device_computes_in_one_memory_and_reads_that_of_its_host(mesh):
    assert device_memory(mesh) == jax.devices()[0].default_memory().kind != HOST_MEMORY
    check_host_memory(mesh, "train.offload_optimizer")


def test_a_platform_without_it_is_refused_with_what_it_has():
    with pytest.raises(ConfigError) as error:
        check_host_memory(None, "train.offload_optimizer", {"device"})
    assert str(error.value) == (
        "train.offload_optimizer: a cpu device reads no memory of its host (pinned_host); it has device. "
        "Leave train.offload_optimizer at its default."
    )
