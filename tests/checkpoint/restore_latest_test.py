"""A run goes on from its newest good checkpoint; what is damaged stays under another name and is told."""

import jax.numpy as jnp
import pytest

from engine.checkpoint.manifest import MANIFEST
from engine.checkpoint.restore_latest import NoUsableCheckpoint, list_set_aside, restore_latest
from engine.checkpoint.store import CheckpointStore
from engine.cluster.exit_status import ExitStatus
from engine.config.errors import CheckpointError


def state(step):
    return {"w": jnp.full(4, float(step)), "step": jnp.int32(step)}


@pytest.fixture
def store(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    for step in (1, 2, 3):
        store.save(step, state(step), {"next_batch": step}, "")
    store.wait()
    yield store
    store.close()


def damage(store, step):
    (store.directory / str(step) / "position" / "position.json").write_text("{}")


def found(store):
    told = []
    restored = restore_latest(store, state(0), say=told.append)
    return (None if restored is None else (int(restored[0]["step"]), restored[1])), told


def test_the_newest_where_it_is_good(store):
    assert found(store) == ((3, 3), [])


def test_nothing_where_there_never_was_a_checkpoint(tmp_path):
    store = CheckpointStore(tmp_path)
    assert found(store) == (None, [])
    store.close()


def test_a_damaged_one_is_set_aside_and_told_and_the_one_before_it_is_taken(store):
    damage(store, 3)
    (store.directory / "2" / MANIFEST).unlink()
    (restored, told), names = found(store), sorted(path.name for path in store.directory.iterdir())
    assert restored == (1, 1)
    assert told[0].startswith(
        f"warning: the checkpoint of step 3 is damaged and set aside as {store.directory / '3.bad'}: position/position"
        ".json: found 2 bytes, expected "
    )
    assert "of step 2 is damaged" in told[1] and "manifest.json is missing" in told[1]
    assert names == ["1", "2.bad", "3.bad"] and store.steps() == [1]
    assert found(store) == ((1, 1), [])


def test_a_step_that_is_saved_and_damaged_again_is_set_aside_beside_the_first(store):
    for _ in range(2):
        damage(store, 3)
        assert found(store)[0] == (2, 2)
        store.save(3, state(3), {"next_batch": 3}, "")
        store.wait()
    assert [name for name, _ in list_set_aside(store.directory)] == ["3.bad-2", "3.bad"]
    assert found(store) == ((3, 3), [])


def test_when_none_is_good_the_run_stops_with_the_list_also_when_it_is_started_again(store):
    for step in (1, 2, 3):
        damage(store, step)
    for _ in range(2):
        with pytest.raises(NoUsableCheckpoint) as error:
            found(store)
        assert error.value.exit_code == ExitStatus.STOP
        lines = str(error.value).splitlines()
        assert [line.split(":")[0].strip() for line in lines[1:4]] == ["3.bad", "2.bad", "1.bad"]
        assert all("position/position.json: found 2 bytes, expected" in line for line in lines[1:4])
        assert "--fresh" in lines[4]


def test_one_that_is_renamed_back_is_checked_again(store):
    path = store.directory / "3" / "position" / "position.json"
    whole = path.read_bytes()
    damage(store, 3)
    assert found(store)[0] == (2, 2)
    back = (store.directory / "3.bad").rename(store.directory / "3")
    (back / "position" / "position.json").write_bytes(whole)
    assert found(store) == ((3, 3), [])


def test_one_of_another_model_is_not_damaged(store):
    with pytest.raises(CheckpointError, match="is not of this model"):
        restore_latest(store, {"w": jnp.zeros(5)})
    assert store.steps() == [1, 2, 3]
