"""Checkpoints in directories with any name that the file system allows."""

import contextlib
import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.checkpoint import arrays
from engine.checkpoint.integrity import verify
from engine.checkpoint.store import CheckpointStore, StorageError
from engine.checkpoint.warm_start import find_step
from tests.checkpoint.saves import POSITION, Saves
from tests.properties import examples

ODD = list(b"[]*?{}!()<>|&;$`'\"\\\n\t :~#%@=+,.-ab0\xc3\xa9\xff\x01")
NAMES = (
    st.one_of(st.lists(st.sampled_from(ODD), min_size=1, max_size=12).map(bytes), st.binary(min_size=1, max_size=60))
    .filter(lambda name: not {0, ord("/")} & set(name) and name not in (b".", b".."))
    .map(os.fsdecode)
)


@pytest.fixture(scope="module")
def state():
    """A tiny state, whose save takes milliseconds."""
    return {"params": {"a/kernel": jnp.arange(6.0).reshape(2, 3)}, "step": jnp.int32(3)}


@pytest.mark.slow
@given(name=NAMES)
@example(name="lr=[0.1]")
@example(name="**")
@example(name="a?")
@example(name="a\\b")
@example(name="gs:")
@example(name="\udcff")
@example(name="x" * 255)
@examples(12)
def test_saved_state_is_verified_and_restored_from_a_directory_with_any_name(name, state):
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, name, "checkpoints")
        saves = Saves(folder)
        assert saves.save(3, state)
        saves.close()
        assert os.listdir(parent) == [name]
        store = CheckpointStore(folder)
        assert verify(folder / "3").step == 3
        assert find_step(str(folder.parent)) == find_step(str(folder / "3")) == (str(folder), 3)
        assert store.position(3) == POSITION
        restored = store.restore(
            3, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        )
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), restored, state))


def test_checkpoint_does_not_depend_on_the_path_of_its_directory(state, tmp_path):
    with contextlib.closing(Saves(tmp_path / "a[b]" / "checkpoints")) as saves:
        saves.save(3, state)
    Path(tmp_path / "a[b]").rename(tmp_path / "c")
    (path, array), folder = arrays.read_smallest(tmp_path / "c/checkpoints/3/state"), tmp_path / "c/checkpoints/3"
    assert (path, int(array)) == ("step", 3)
    assert not [file for file in folder.rglob("*") if file.is_file() and b"/proc/self" in file.read_bytes()]


def test_first_save_that_cannot_be_read_back_fails(state, tmp_path, monkeypatch):
    """The folder is handed to Orbax by its own name, of which Orbax takes a part as a wildcard."""
    monkeypatch.setattr(arrays, "plain_path", contextlib.nullcontext)
    saves = Saves(tmp_path / "lr=[0.1]" / "checkpoints")
    saves.save(3, state)
    with pytest.raises(StorageError, match=r"step 3 could not be saved \(it cannot be read back: .*NOT_FOUND"):
        saves.wait()
    assert saves.steps() == []
    monkeypatch.undo()
    saves.save(4, state)
    saves.close()
    assert saves.steps() == [4]
