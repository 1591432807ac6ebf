"""A process of a job that JAX's compilation cache does not serve loads what an earlier job has compiled."""

import pytest

from tests import runs

pytestmark = pytest.mark.multiprocess

PROGRAM = """
from engine.cluster import cluster_detection, processes
processes.initialize(cluster_detection.detect().process)
import jax
import numpy as np
from engine.config.schema import MeshSpec
from tests import program_cache, zoo

program = zoo.program(zoo.Classify(), mesh=MeshSpec(data=2))
state, values = program.init(), []
for batch in zoo.batches(2):
    rows = zoo.batch(jax.tree.map(lambda x: np.split(x, 2)[jax.process_index()], batch))
    placed = jax.tree.map(lambda x: jax.make_array_from_process_local_data(program.spec.batch_sharding, x), rows)
    state, metrics = program.steps(1)(state, (placed,), program.skip_mask((False,)))
    values.append(np.asarray(metrics).tobytes().hex())
assert program.not_finite(state) == []
print(sorted({*program_cache.loaded}), *values)
processes.leave()
"""


def test_second_job_loads_the_programs_of_its_other_processes_and_computes_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    first, second = (runs.lines_by_process(PROGRAM, processes=2) for _ in range(2))
    assert [lines["0"][-1].split()[0] for lines in (first, second)] == ["[]", "[]"]  # served by JAX
    loaded, *values = second["1"][-1].rsplit(maxsplit=2)
    assert first["1"][-1] == " ".join(["[]", *values])
    assert loaded == "['check', 'first state', 'step']"
    assert [lines["0"][-1].split()[1:] for lines in (first, second)] == [values, values]
