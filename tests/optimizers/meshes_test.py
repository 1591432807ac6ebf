"""Each optimizer computes the same updates on each mesh as on one device.

The updates have given gradients, the same bits on each mesh, and the shardings of the tiny decoder. So the tolerance is
the rounding of the sums of the optimizer itself. Each run has several optimizers, one for each of its groups.
`python -m benchmarks.optimizer_matrix` has each optimizer on each mesh, also in whole steps.
"""

import itertools

import numpy as np
import pytest

from benchmarks.optimizer_matrix import meshes
from benchmarks.optimizer_matrix.subjects import MESHES, MIXES, OPTIMIZERS

ROWS = [
    ("element-wise", "fsdp"),
    ("averages", "ZeRO-1"),
    ("norms of arrays", "fsdp x tensor"),
    ("matrices", "expert"),
    ("matrices", "pipeline"),
]


def test_rows_have_each_optimizer_and_two_on_each_mesh():
    assert {name for row in ROWS for name in MIXES[row[0]].values()} == {*OPTIMIZERS}
    on = {mesh: {*itertools.chain(*(MIXES[mix].values() for mix, there in ROWS if there == mesh))} for mesh in MESHES}
    assert min(map(len, on.values())) >= 2


@pytest.mark.parametrize(("mix", "mesh"), ROWS)
def test_updates_equal_those_of_one_device(mix, mesh):
    wanted, found = meshes.updated(mix, None, mesh == "expert"), meshes.updated(mix, mesh)
    assert min(np.abs(x).max() for x in wanted.changes.values()) > 1e-4
    error, path = meshes.error(wanted.changes, found.changes)
    assert error <= meshes.tolerance(mix), path


def test_matrices_of_another_layer_are_an_error():
    wanted = meshes.updated("matrices", None).changes
    swapped = {path: x[::-1] if path.startswith("stack/") else x for path, x in wanted.items()}
    assert meshes.error(wanted, swapped)[0] > 0.5
