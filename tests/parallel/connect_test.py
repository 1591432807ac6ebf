"""All processes meet before the first collective, which connects the devices of every later one."""

import re
import sys
import textwrap

import pytest

from tests import runs

pytestmark = pytest.mark.multiprocess

PROGRAM = """
import os, sys, time
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from engine.cluster import cluster_detection, group, kv_store, processes
from engine.parallel.connect import connect

processes.initialize(cluster_detection.detect().process)
mesh = Mesh(np.array(jax.devices()).reshape(2, 1, 2), ("data", "one", "tensor"))

def connections():
    return list(kv_store._client().key_value_dir_get_bytes("cpu:gloo/"))

if group.index() == 1:  # process 0 waits where a process may come late, not in Gloo, which ends the wait after 30 s
    end = time.monotonic() + 200
    while 0 not in group.peek("the connection of all devices"):
        assert time.monotonic() < end, "process 0 does not wait"
        time.sleep(0.01)
    print(group.index(), "before:", len(connections()), flush=True)
connect(mesh)
group.barrier("connected", 60)
before = connections()
for axes in ("data", "tensor", ("data", "tensor")):
    spread, whole = NamedSharding(mesh, PartitionSpec(axes)), NamedSharding(mesh, PartitionSpec())
    ones = jax.jit(lambda: jnp.ones(4), out_shardings=spread)()
    assert float(jax.jit(jnp.sum, out_shardings=whole)(ones)) == 4
group.barrier("summed", 60)
print(group.index(), "after:", len(before) > 0, len(connections()) - len(before), flush=True)
processes.leave()
"""


def test_processes_meet_before_the_devices_along_all_axes_are_connected():
    launcher = textwrap.dedent(f"""
        import sys
        from engine.launch.local import launch
        sys.exit(launch([sys.executable, "-c", {PROGRAM!r}], processes=2, devices=2))
    """)
    done = runs.run([sys.executable, "-c", launcher])
    assert done.returncode == 0, done.stderr
    found = re.findall(r"\d (?:before|after): .*", done.stdout)  # Gloo's threads write into each other's lines
    assert sorted(found) == ["0 after: True 0", "1 after: True 0", "1 before: 0"], done.stdout
