import pickle
import subprocess
import sys

import numpy as np
import pytest

from engine.augmentation.shared_table import SharedTable
from engine.base.errors import DataError

ARRAYS = {"a": np.arange(100_000.0), "b": np.array(["x", "long"]), "c": np.zeros((0, 3), np.float32)}


def test_other_process_reads_the_same_memory():
    table = SharedTable(ARRAYS)
    pickled = pickle.dumps(table)
    if sys.platform == "linux":
        assert len(pickled) < 1000
    program = (
        "import pickle, sys; t = pickle.load(sys.stdin.buffer); print(t['a'].sum(), t['b'].tolist(), t['c'].shape);"
        "assert not t['a'].flags.writeable"
    )
    done = subprocess.run([sys.executable, "-c", program], input=pickled, capture_output=True, check=False)
    assert done.stdout.decode().split("\n")[0] == "4999950000.0 ['x', 'long'] (0, 3)", done.stderr.decode()


def test_copy_outlives_the_table():
    table = SharedTable(ARRAYS)
    first = pickle.loads(pickle.dumps(table))
    del table
    copy = pickle.loads(pickle.dumps(first))
    pickled = pickle.dumps(first)
    del first
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(copy[name], array)
    assert list(copy.arrays) == list(ARRAYS)
    if sys.platform == "linux":
        with open(__file__), pytest.raises(DataError, match=r"the memory of process \d+ cannot be read"):
            pickle.loads(pickled)


def test_arrays_cannot_be_modified():
    with pytest.raises(ValueError, match="read-only"):
        SharedTable(ARRAYS)["a"][0] = 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems pickle the arrays")
def test_memory_of_a_process_that_has_ended_is_one_sentence():
    program = (
        "import pickle, sys, numpy; from engine.augmentation.shared_table import SharedTable;"
        "sys.stdout.buffer.write(pickle.dumps(SharedTable({'a': numpy.zeros(3)})))"
    )
    pickled = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
    with pytest.raises(DataError, match=r"the memory of process \d+ cannot be read"):
        pickle.loads(pickled)
