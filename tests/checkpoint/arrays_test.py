"""Arrays are written part by part, made one whole, and read onto what is asked for; Orbax is quiet."""

import resource
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.checkpoint import arrays
from engine.config.errors import CheckpointError

STATE = {"params": {"w": jnp.arange(6.0), "b": jnp.ones((), jnp.bfloat16)}, "carried": {}}


def test_what_was_written_and_finished_is_described_and_read(tmp_path):
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


def test_what_the_disk_refuses_is_raised(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        arrays.write(tmp_path / "file" / "state", STATE, lambda: None)
    (tmp_path / "state" / "ocdbt.process_0").mkdir(parents=True)
    (tmp_path / "state" / "ocdbt.process_0" / "d").write_text("")
    with pytest.raises(Exception, match="ocdbt"):
        arrays.write(tmp_path / "state", STATE, lambda: None)


@pytest.mark.faults
def test_what_the_system_refuses_tensorstore_is_called_by_its_name(tmp_path):
    former = resource.getrlimit(resource.RLIMIT_FSIZE)  # Python ignores the signal that goes with it
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, former[1]))
    try:
        with pytest.raises(Exception, match="ocdbt") as error:
            arrays.write(tmp_path / "state", {"w": jnp.arange(10_000.0)}, lambda: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert arrays.error_text(error.value) == "File too large"


def test_an_error_becomes_a_sentence_of_its_first_line():
    full = OSError("disk full\nand a page of where in C++")
    with (
        pytest.raises(CheckpointError, match=r"^here \(OSError: disk full\)$"),
        arrays.failing(lambda words: f"here ({words})"),
    ):
        raise full
    with pytest.raises(CheckpointError, match=r"^as it is$"), arrays.failing(lambda words: "another"):
        raise CheckpointError("as it is")
