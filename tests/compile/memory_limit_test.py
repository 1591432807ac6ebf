"""The memory of each device that the programs of a run may use. tests/api/auto_size_test.py has two hosts."""

import jax

from engine.compile.memory_limit import devices_by_place, memory_limit
from engine.config.schema import MeshSpec
from engine.parallel.mesh import make_mesh


def test_limit_is_that_of_the_setting_or_half_of_the_host():
    mesh = make_mesh(MeshSpec(), jax.devices()[:4])
    found = memory_limit(2.5, mesh)
    assert found is not None and found.bytes == 2.5 * 2**30
    one, four = (memory_limit(None, make_mesh(MeshSpec(), jax.devices()[:n])) for n in (1, 4))
    assert one is not None and four is not None
    assert one.bytes == 4 * four.bytes
    assert "on each of 4 CPU devices, 50% of" in four.text


def test_only_processes_on_one_host_share_its_memory():
    assert devices_by_place({0: ("a", 2), 1: ("a", 3), 2: ("b", 4)}, []) == {"a": 5, "b": 4}
