"""Writing the parts of a state, merging them, and reading them with requested shardings."""

import resource
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.base.errors import CheckpointError
from engine.checkpoint import arrays

STATE = {"params": {"w": jnp.arange(6.0), "b": jnp.ones((), jnp.bfloat16)}, "carried": {}}


def test_arrays_round_trip(tmp_path):
    copied = threading.Event()
    arrays.write(tmp_path / "state", STATE, copied.set)
    assert copied.is_set()
    arrays.finish(tmp_path / "state")
    stored = arrays.describe(tmp_path / "state")
    assert stored["params"]["w"].shape == (6,) and stored["params"]["b"].dtype == jnp.bfloat16
    want = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), STATE)
    found = arrays.read(tmp_path / "state", want)
    assert jax.tree.structure(found) == jax.tree.structure(STATE)
    assert np.asarray(found["params"]["w"]).tolist() == [0, 1, 2, 3, 4, 5]


def test_restore_reads_no_metadata_file_of_each_process(tmp_path):
    arrays.write(tmp_path / "state", STATE, lambda: None)
    arrays.finish(tmp_path / "state")
    (file,) = (tmp_path / "state" / "array_metadatas").iterdir()
    file.write_text("not JSON")
    want = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), STATE)
    assert arrays.describe(tmp_path / "state")["params"]["w"].shape == (6,)
    assert arrays.read(tmp_path / "state", want)["params"]["w"].tolist() == [0, 1, 2, 3, 4, 5]


def test_write_raises_errors_of_the_disk(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        arrays.write(tmp_path / "file" / "state", STATE, lambda: None)
    (tmp_path / "state" / "ocdbt.process_0").mkdir(parents=True)
    (tmp_path / "state" / "ocdbt.process_0" / "d").write_text("")
    with pytest.raises(Exception, match="ocdbt"):
        arrays.write(tmp_path / "state", STATE, lambda: None)


@pytest.mark.faults
def test_error_text_names_the_system_error_of_tensorstore(tmp_path):
    former = resource.getrlimit(resource.RLIMIT_FSIZE)  # Python ignores the signal that goes with it
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, former[1]))
    try:
        with pytest.raises(Exception, match="ocdbt") as error:
            arrays.write(tmp_path / "state", {"w": jnp.arange(10_000.0)}, lambda: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert arrays.error_text(error.value) == "File too large"


def test_reraise_uses_the_first_line_of_the_error():
    full = OSError("disk full\nand a page of C++ locations")
    with (
        pytest.raises(CheckpointError, match=r"^here \(OSError: disk full\)$"),
        arrays.reraise(lambda words: f"here ({words})"),
    ):
        raise full
    with pytest.raises(CheckpointError, match=r"^as it is$"), arrays.reraise(lambda words: "another"):
        raise CheckpointError("as it is")
